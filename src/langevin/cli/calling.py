"""From a request to a pipeline's call, and from its result to the facts that a picture carries."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..core.errors import InputError
from ..core.rng import streams
from ..pipelines.base import DiffusionPipeline
from .loras import told
from .request import PICTUREBOOK, PICTUREBOOK_CALL, Request, flag, syntax

ARGUMENTS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "strength": "strength",
    "control_scale": "controlnet_conditioning_scale",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
}
"""Option -> the argument of a pipeline's call that takes its value."""
PICTURES = {
    "image": "image",
    "mask": "mask_image",
    "outpaint": "mask_image",
    "control": "controlnet_conditioning_scale",
    "image_prompt": "ip_adapter_image",
}
"""Option that names a picture -> an argument that pipelines have when they take one."""


def arguments(cls: type[Any], request: Request) -> dict[str, Any]:
    """Return the arguments of the call of a pipeline class, without pictures and sizes: what was asked, by its names.

    Raises:
        InputError: for an option that the class does not take, or a prompt that it needs and did not get.
    """
    taken = inspect.signature(cls.__call__).parameters
    given = {ARGUMENTS[name]: getattr(request, name) for name in ARGUMENTS if getattr(request, name) is not None}
    if syntax(request) is not None:
        given["prompt_syntax"] = syntax(request)
    call = (PICTUREBOOK_CALL if request.model == PICTUREBOOK else {}) | given
    options = {**{argument: option for option, argument in ARGUMENTS.items()}, "prompt_syntax": "prompt_syntax"}
    wanted = {name: options[name] for name in call}
    wanted |= {argument: option for option, argument in PICTURES.items() if getattr(request, option)}
    wanted |= {"width": "size"} if request.size and not request.image else {}
    for name, option in wanted.items():
        if name not in taken:
            raise InputError(f"{cls.__name__} takes no {flag(option)}; leave it out, or choose another --model.")
    if "prompt" in taken and request.prompt is None:
        raise InputError(f'{cls.__name__} needs a prompt: langevin generate "a red house under a yellow sun".')
    if "image" in taken and not request.image and not request.control:
        raise InputError(f"{cls.__name__} starts from a picture; give it by --image.")
    return call


def draw(pipe: DiffusionPipeline, call: dict[str, Any], *, seed: int, count: int = 1) -> list[Any]:
    """Run the pipeline once for `count` pictures; picture k uses the stream `seed + k`."""
    result = pipe(**call, **counted(pipe, count), generator=streams(count, seed=seed))  # type: ignore[operator]
    flagged = [k for k, flag in enumerate(getattr(result, "nsfw_content_detected", None) or []) if flag]
    if flagged:
        print(f"The model's safety checker flagged these pictures: {flagged}", file=sys.stderr)
    return result.images


def counted(pipe: DiffusionPipeline, count: int) -> dict[str, Any]:
    """Return the argument of a pipeline's call that says how many pictures are drawn, if it has one."""
    taken = inspect.signature(type(pipe).__call__).parameters
    return {name: count for name in ("num_images_per_prompt", "batch_size") if name in taken}


def describe(pipe: DiffusionPipeline, request: Request, call: dict[str, Any], image: Any, seed: int) -> dict[str, Any]:
    """Return what a picture was made with, defaults filled in."""
    scheduler = getattr(pipe, "scheduler", None)
    config = {k: v for k, v in getattr(scheduler, "config", {}).items() if not k.startswith("_")}
    return settled(type(pipe), request, call, seed) | {
        "scheduler": type(scheduler).__name__,
        "scheduler_config": config,
        "width": image.width,
        "height": image.height,
        "device": str(getattr(pipe, "device", "cpu")),
    }


def settled(cls: type[Any], request: Request, call: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return what is known of a picture before its model is loaded, defaults filled in."""
    taken = inspect.signature(cls.__call__).parameters

    def used(name: str) -> Any:
        value = call.get(name, taken[name].default if name in taken else None)
        return value if isinstance(value, (str, int, float)) else None

    facts = {
        "langevin": __version__,
        "torch": torch.__version__,
        "pipeline": cls.__name__,
        "model": request.model,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "steps": used("num_inference_steps"),
        "guidance_scale": used("guidance_scale"),
        "seed": seed,
        "dtype": request.dtype,
    }
    return facts | {name: value for name, value in sources(request, used).items() if value is not None}


def sources(request: Request, used: Any) -> dict[str, Any]:
    """Return what a picture was made from; what was not given is None.

    Files go by their name alone, since folders say things about their owner.

    Args:
        used: gives the value of an argument of the call.
    """
    files = {option: name and Path(name).name for option in ("image", "mask", "control", "image_prompt", "ip_adapter")
             for name in [getattr(request, option)]}  # fmt: skip
    return {
        **files,
        "outpaint": request.outpaint,
        "strength": used("strength") if request.image else None,
        "controlnet": (request.controlnet or request.model) if request.control else None,
        "control_scale": used("controlnet_conditioning_scale") if request.control else None,
        "edges": request.edges or None,
        "lora": told(request.lora),
        "embedding": [Path(file).name for file in request.embedding] or None,
        "ip_adapter_scale": request.ip_adapter_scale,
        "prompt_syntax": syntax(request),
    }
