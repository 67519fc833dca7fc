"""The options of one `langevin generate`, and what can be said about them without reading a file or a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .. import registry
from ..core.errors import InputError, check_choice, check_count, check_number, did_you_mean
from ..picturebook import GUIDANCE_SCALE, STEPS, model_folder

DTYPES = ("float32", "bfloat16", "float16")
PICTUREBOOK = "picturebook"
PICTUREBOOK_CALL = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
"""What the shipped model is called with unless the options say otherwise."""
PLAIN = "plain"
"""The command line's name for prompts without a syntax, its default."""


@dataclass(frozen=True)
class Request:
    """The options of one call; None means the model's own choice."""

    prompt: str | None = None
    prompts: str | None = None
    model: str = PICTUREBOOK
    negative_prompt: str | None = None
    prompt_syntax: str = PLAIN
    image: str | None = None
    mask: str | None = None
    outpaint: str | None = None
    strength: float | None = None
    control: str | None = None
    controlnet: str | None = None
    control_scale: float | None = None
    edges: bool = False
    image_prompt: str | None = None
    ip_adapter: str | None = None
    ip_adapter_scale: float | None = None
    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    num_images: int = 1
    grid: str | None = None
    size: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    output: str = "outputs"
    processes: int | None = None
    threads: int | None = None
    overwrite: bool = False
    dry_run: bool = False
    quiet: bool = False

    @property
    def task(self) -> str:
        """The task that the pictures given ask for."""
        if self.mask or self.outpaint:
            return "inpainting"
        return "image-to-image" if self.image else "text-to-image"


NEEDS = (
    ("mask", "image"),
    ("outpaint", "image"),
    ("strength", "image"),
    ("controlnet", "control"),
    ("control_scale", "control"),
    ("edges", "control"),
    ("image_prompt", "ip_adapter"),
    ("ip_adapter", "image_prompt"),
    ("ip_adapter_scale", "ip_adapter"),
    ("processes", "prompts"),
    ("threads", "prompts"),
    ("overwrite", "prompts"),
)
"""Options that mean nothing without another."""


def flag(field: str) -> str:
    """Return the command line's name of an option."""
    return "PROMPT" if field == "prompt" else f"--{field.replace('_', '-')}"


def check(request: Request) -> None:
    """Check the options against each other and for themselves.

    Raises:
        InputError: naming the option.
    """
    from ..core.rng import streams
    from ..prompts.syntax import SYNTAXES, parse
    from .loras import parse as parse_loras

    check_choice("--dtype", request.dtype, DTYPES)
    check_choice("--prompt-syntax", request.prompt_syntax, [PLAIN, *SYNTAXES])
    for option, other in NEEDS:
        if getattr(request, option) not in (None, False) and getattr(request, other) is None:
            raise InputError(f"{flag(option)} needs {flag(other)}.")
    for option in ("prompts", "grid"):
        if request.dry_run and getattr(request, option) is not None:
            raise InputError(f"--dry-run tells of one call; leave {flag(option)} out.")
    if request.mask and request.outpaint:
        raise InputError("--mask and --outpaint both say what to paint; give one of them.")
    if request.strength is not None:
        check_number("--strength", request.strength, low=0, high=1)
    for option in ("guidance_scale", "control_scale", "ip_adapter_scale"):
        if getattr(request, option) is not None:
            check_number(flag(option), getattr(request, option))
    for option in ("steps", "processes", "threads"):
        if getattr(request, option) is not None:
            check_count(flag(option), getattr(request, option))
    if request.scheduler is not None:
        find_scheduler(request.scheduler)
    if request.seed is not None:
        streams(request.num_images, seed=request.seed)
    parse_size(request.size)
    parse_loras(request.lora)
    for text in (request.prompt, request.negative_prompt):
        parse(text or "", syntax(request))


def place_of(model: str) -> str:
    """Return where a model is: the folder of the shipped one for its name, and any other as it was written."""
    return str(model_folder()) if model == PICTUREBOOK else model


def syntax(request: Request) -> str | None:
    """Return the prompt's syntax as the pipelines name it, None for plain text."""
    return None if request.prompt_syntax == PLAIN else request.prompt_syntax


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (width, height) from "512x768" or "512"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if not match or 0 in (int(match[1]), int(match[2] or match[1])):
        raise InputError(f"--size is {text!r}; write WIDTHxHEIGHT in pixels, for example 512x768, or one number.")
    return int(match[1]), int(match[2] or match[1])


def parse_margins(text: str) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom) from "32,32,0,0"."""
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text)
    if not match or not any(int(side) for side in match.groups()):
        raise InputError(f"--outpaint is {text!r}; write LEFT,RIGHT,TOP,BOTTOM in pixels, for example 32,32,0,0.")
    left, right, top, bottom = (int(side) for side in match.groups())
    return left, right, top, bottom


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
