"""Small documented helpers that scripts import from `diffusers`, and that this library itself does not need."""

from __future__ import annotations

import inspect
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..core.config import FORMAT_VERSION
from ..core.errors import ConfigError, InputError, check_choice
from ..core.imports import is_available, version
from ..core.rng import Generators
from ..diffusion.guidance import rescaled
from ..nn.compiled import bare

Function = TypeVar("Function", bound=Callable[..., Any])
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.bin"
SAFETENSORS_WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
USE_PEFT_BACKEND = True
"""Whether `scale_lora_layers` is what weighs adapters; scripts ask before they call it."""
QUESTION = re.compile(r"is_(?P<package>\w+)_(?P<kind>available|version)")
PACKAGES = {
    "invisible_watermark": "imwatermark",
    "k_diffusion": "k_diffusion",
    "opencv": "cv2",
    "pil": "PIL",
    "scikit_learn": "sklearn",
}
"""Packages whose import name differs from the one in their question."""
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">=": operator.ge, ">": operator.gt,
}  # fmt: skip

_scaled: WeakKeyDictionary[nn.Module, list[AbstractContextManager]] = WeakKeyDictionary()


def __getattr__(name: str) -> Any:
    if name == "PIL_INTERPOLATION":
        from PIL.Image import Resampling

        return {"linear": Resampling.BILINEAR, **{kind.name.lower(): kind for kind in Resampling}}
    if (found := question(name)) is not None:
        return found
    raise AttributeError(name)


# What is installed ---------------------------------------------------------------------------------------------------


def question(name: str) -> Callable[..., bool] | None:
    """Return the function behind `is_xformers_available`, `is_torch_version` and their kin, or None."""
    match = QUESTION.fullmatch(name)
    if match is None:
        return None
    package = PACKAGES.get(match["package"], match["package"])
    return partial(is_available if match["kind"] == "available" else compare, package)


def compare(package: str, operation: str, than: str) -> bool:
    """Compare the installed version of a package: `compare("torch", ">=", "2.0")`; False when it is not installed."""
    from packaging.version import Version

    check_choice("operation", operation, COMPARISONS)
    found = version(package)
    return found is not None and COMPARISONS[operation](Version(Version(found).base_version), Version(than))


def check_min_version(min_version: str) -> None:
    """Raise ConfigError when a script asks for a later version of the documented interface than this one."""
    from packaging.version import Version

    if Version(Version(min_version).base_version) > Version(FORMAT_VERSION):
        raise ConfigError(f"The script asks for diffusers {min_version}; this library follows {FORMAT_VERSION}.")


def is_compiled_module(module: Any) -> bool:
    """Tell whether `torch.compile` made the module."""
    return bare(module) is not module


# What their authors write --------------------------------------------------------------------------------------------


def deprecate(*args: Any, take_from: Any = None, standard_warn: bool = True, stacklevel: int = 2) -> Any:
    """Warn about deprecated arguments or attributes, and return the values that were given for them.

    Args:
        args: (name, version in which it goes, what to do), or several such triples.
        take_from: the keywords of a call, from which the names are taken out, or an object that has them as attributes.
        standard_warn: begin the warning with a sentence that says what is deprecated.
    """
    values = []
    for name, until, advice in [args] if isinstance(args[0], str) else args:
        if isinstance(take_from, dict):
            if name not in take_from:
                continue
            values.append(take_from.pop(name))
        elif take_from is not None:
            if not hasattr(take_from, name):
                continue
            values.append(getattr(take_from, name))
        text = f"`{name}` is deprecated and goes in version {until}. {advice}" if standard_warn else advice
        warnings.warn(text, FutureWarning, stacklevel=stacklevel + 1)
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def replace_example_docstring(example_docstring: str) -> Callable[[Function], Function]:
    """Return a decorator that puts an example below the line "Examples:" of a docstring, or at its end."""

    def decorate(function: Function) -> Function:
        text = function.__doc__
        if text is not None:
            changed, count = re.subn(
                r"^([ \t]*)Examples?:[ \t]*$", lambda m: f"{m[1]}Examples:\n{example_docstring}", text, flags=re.M
            )
            function.__doc__ = changed if count else f"{text}\n{example_docstring}"
        return function

    return decorate


# What their loops call -----------------------------------------------------------------------------------------------


def rescale_noise_cfg(noise_cfg: Tensor, noise_pred_text: Tensor, guidance_rescale: float = 0.0) -> Tensor:
    """Return a guided prediction with its deviation pulled to that of the prompts': Lin et al. 2023, section 3.4."""
    return rescaled(noise_cfg, noise_pred_text, guidance_rescale)


def retrieve_timesteps(
    scheduler: Any,
    num_inference_steps: int | None = None,
    device: torch.device | str | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, int]:
    """Set a scheduler's schedule, by a number of steps or by own levels, and return (timesteps, number of steps).

    Raises:
        InputError: when both `timesteps` and `sigmas` are given.
        ConfigError: for a scheduler that does not take own levels.
    """
    if timesteps is not None and sigmas is not None:
        raise InputError("Both `timesteps` and `sigmas` were given; pass one of them.")
    own = {name: levels for name, levels in (("timesteps", timesteps), ("sigmas", sigmas)) if levels is not None}
    for name in own:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ConfigError(f"{type(scheduler).__name__} takes no own `{name}`; use `num_inference_steps`.")
    if own:
        scheduler.set_timesteps(**own, device=device, **kwargs)
        return scheduler.timesteps, len(scheduler.timesteps)
    scheduler.set_timesteps(num_inference_steps, device=device, **kwargs)
    assert num_inference_steps is not None
    return scheduler.timesteps, num_inference_steps


def retrieve_latents(encoder_output: Any, generator: Generators = None, sample_mode: str = "sample") -> Tensor:
    """Return the latents that an autoencoder's `encode` gave: drawn, or with "argmax" the most likely ones."""
    spread = getattr(encoder_output, "latent_dist", None)
    if spread is None:
        return encoder_output.latents
    check_choice("sample_mode", sample_mode, ("sample", "argmax"))
    return spread.sample(generator) if sample_mode == "sample" else spread.mode()


def scale_lora_layers(model: nn.Module, weight: float | None) -> None:
    """Multiply the weights of a network's adapters until `unscale_lora_layers`."""
    from ..adapters import lora

    entered = lora.scaled({"model": model}, weight)
    entered.__enter__()
    _scaled.setdefault(model, []).append(entered)


def unscale_lora_layers(model: nn.Module, weight: float | None = None) -> None:
    """Undo the last `scale_lora_layers` of a network; `weight` is accepted as documented."""
    if entered := _scaled.get(model):
        entered.pop().__exit__(None, None, None)


def compute_snr(noise_scheduler: Any, timesteps: Tensor) -> Tensor:
    """Return alpha^2 / sigma^2 of a scheduler at the given timesteps, in float32 on their device."""
    bar = noise_scheduler.alphas_cumprod.to(device=timesteps.device, dtype=torch.float32)[timesteps]
    return bar / (1 - bar)
