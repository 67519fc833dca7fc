"""`langevin generate`: from the words on the command line to a PNG file."""

from __future__ import annotations

import inspect
import re
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, registry
from ..core.errors import InputError, check_choice, did_you_mean
from ..picturebook import GUIDANCE_SCALE, STEPS, model_folder
from .output import stem, write

if TYPE_CHECKING:
    from ..pipelines.base import DiffusionPipeline

DTYPES = ("float32", "bfloat16", "float16")
PICTUREBOOK = "picturebook"
PICTUREBOOK_CALL = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
"""What the shipped model is called with unless the options say otherwise."""


@dataclass(frozen=True)
class Request:
    """The options of one call; None means the model's own choice."""

    prompt: str | None = None
    model: str = PICTUREBOOK
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    num_images: int = 1
    size: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    output: str = "outputs"
    quiet: bool = False


def run(request: Request) -> list[Path]:
    """Generate what is asked and return the paths of the files written.

    Raises:
        LangevinError: for anything in the request that cannot be done, before the model is loaded where possible.
    """
    check_choice("--dtype", request.dtype, DTYPES)
    size = parse_size(request.size)
    stem(request.output)
    scheduler = find_scheduler(request.scheduler) if request.scheduler else None
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    folder = str(model_folder()) if request.model == PICTUREBOOK else request.model

    started = time.perf_counter()
    pipe = load(folder, request)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    loaded = time.perf_counter()
    call = arguments(pipe, request, size)
    images = draw(pipe, call, seed=seed, count=request.num_images)
    drawn = time.perf_counter()

    facts = [describe(pipe, request, call, image, seed + k) for k, image in enumerate(images)]
    paths = write(images, facts, request.output)
    if not request.quiet:
        width, height = images[0].size
        what = f"{len(images)} picture{'s' * (len(images) > 1)} of {width}x{height}, seed {seed}"
        print(f"{what}: loaded in {loaded - started:.1f} s, drawn in {drawn - loaded:.1f} s", file=sys.stderr)
    return paths


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (width, height) from "512x768" or "512"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if not match or 0 in (int(match[1]), int(match[2] or match[1])):
        raise InputError(f"--size is {text!r}; write WIDTHxHEIGHT in pixels, for example 512x768, or one number.")
    return int(match[1]), int(match[2] or match[1])


def short_name(scheduler: str) -> str:
    """Return the command line's name of a scheduler class: EulerAncestralDiscreteScheduler -> euler-ancestral."""
    core = scheduler.removesuffix("Scheduler").removesuffix("Discrete").removesuffix("Multistep")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", core).lower()


def find_scheduler(name: str, *, what: str = "--scheduler") -> str:
    """Return the class that `name` means: the class, with or without "Scheduler", or its short name, in any spelling.

    Raises:
        InputError: with the nearest name, after `what`.
    """
    options = {short_name(row.name): row.name for row in registry.SCHEDULERS if row.name.endswith("Scheduler")}
    folded = {re.sub(r"[^a-z0-9]", "", key.lower()): value for key, value in options.items()}
    folded |= {value.lower(): value for value in options.values()}
    folded |= {value.removesuffix("Scheduler").lower(): value for value in options.values()}
    wanted = re.sub(r"[^a-z0-9]", "", name.lower())
    if wanted not in folded:
        raise InputError(f"{what} is {name!r}{did_you_mean(name.lower(), options)}")
    return folded[wanted]


def load(folder: str, request: Request) -> DiffusionPipeline:
    """Load the pipeline in the asked number format onto the asked device."""
    import torch

    from ..pipelines.base import DiffusionPipeline

    device = pick_device(request.device)
    if not request.quiet:
        print(f"Loading {request.model} on {device} in {request.dtype} ...", file=sys.stderr)
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, request.dtype)).to(device)
    pipe.set_progress_bar_config(disable=request.quiet)
    return pipe


def pick_device(name: str) -> str:
    """Return a device that exists; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        InputError: naming the devices at hand.
    """
    import torch

    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return present.type if present is not None else "cpu"
    valid = ["cpu"]
    if present is not None:
        valid += [present.type, *(f"{present.type}:{k}" for k in range(torch.accelerator.device_count()))]
    check_choice("--device", name, ["auto", *valid])
    return name


def set_scheduler(pipe: DiffusionPipeline, name: str) -> None:
    """Replace the pipeline's scheduler by the class `name`, built from the present one's configuration."""
    import langevin

    present = getattr(pipe, "scheduler", None)
    if present is None:
        raise InputError(f"{type(pipe).__name__} has no scheduler that --scheduler could replace.")
    pipe.register_modules(scheduler=getattr(langevin, name).from_config(present.config))


def arguments(pipe: DiffusionPipeline, request: Request, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the keyword arguments of the call: what was asked, under the pipeline's names.

    Raises:
        InputError: for an option that this pipeline does not take, or a prompt that it needs and did not get.
    """
    asked = {
        "prompt": ("PROMPT", request.prompt),
        "negative_prompt": ("--negative-prompt", request.negative_prompt),
        "num_inference_steps": ("--steps", request.steps),
        "guidance_scale": ("--guidance-scale", request.guidance_scale),
        "width": ("--size", size and size[0]),
        "height": ("--size", size and size[1]),
    }
    taken = inspect.signature(type(pipe).__call__).parameters
    given = {name: value for name, (_, value) in asked.items() if value is not None}
    call = (PICTUREBOOK_CALL if request.model == PICTUREBOOK else {}) | given
    for name in call:
        if name not in taken:
            raise InputError(
                f"{type(pipe).__name__} takes no {asked[name][0]}; leave it out, or choose another --model."
            )
    if "prompt" in taken and request.prompt is None:
        raise InputError(f'{type(pipe).__name__} needs a prompt: langevin generate "a red house under a yellow sun".')
    return call


def draw(pipe: DiffusionPipeline, call: dict[str, Any], *, seed: int, count: int) -> list[Any]:
    """Run the pipeline once for `count` pictures; picture k uses the stream `seed + k`."""
    from ..core.rng import streams

    taken = inspect.signature(type(pipe).__call__).parameters
    number = "num_images_per_prompt" if "num_images_per_prompt" in taken else "batch_size"
    result = pipe(**call, **{number: count}, generator=streams(count, seed=seed))  # type: ignore[operator]
    flagged = [k for k, flag in enumerate(getattr(result, "nsfw_content_detected", None) or []) if flag]
    if flagged:
        print(f"The model's safety checker flagged these pictures: {flagged}", file=sys.stderr)
    return result.images


def describe(pipe: DiffusionPipeline, request: Request, call: dict[str, Any], image: Any, seed: int) -> dict[str, Any]:
    """Return what a picture was made with, defaults filled in."""
    import torch

    taken = inspect.signature(type(pipe).__call__).parameters

    def used(name: str) -> Any:
        value = call.get(name, taken[name].default if name in taken else None)
        return value if isinstance(value, (str, int, float)) else None

    scheduler = getattr(pipe, "scheduler", None)
    config = {k: v for k, v in getattr(scheduler, "config", {}).items() if not k.startswith("_")}
    return {
        "langevin": __version__,
        "torch": torch.__version__,
        "pipeline": type(pipe).__name__,
        "model": request.model,
        "scheduler": type(scheduler).__name__,
        "scheduler_config": config,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "steps": used("num_inference_steps"),
        "guidance_scale": used("guidance_scale"),
        "seed": seed,
        "width": image.width,
        "height": image.height,
        "dtype": request.dtype,
        "device": str(getattr(pipe, "device", "cpu")),
    }
