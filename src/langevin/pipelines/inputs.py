"""What a call is given: the glossary of every parameter, the checks that precede any work, and the facts of a call."""

from __future__ import annotations

import inspect
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import torch

from ..core.errors import ConfigError, InputError, check_known
from ..core.logging import get_logger
from ..core.rng import Generators, streams

logger = get_logger(__name__)
Call_ = TypeVar("Call_", bound=Callable[..., Any])

GLOSSARY: dict[str, str] = {
    "batch_size": "Number of pictures to make.",
    "callback_on_step_end": (
        "Function `(pipe, step, timestep, tensors) -> tensors`, or a `PipelineCallback`, called after every step. "
        "`tensors` holds what `callback_on_step_end_tensor_inputs` names; what it returns replaces them. Setting "
        "`pipe._interrupt = True` in it stops the run after this step."
    ),
    "callback_on_step_end_tensor_inputs": (
        "Names of the tensors the callback receives; a pipeline lists those it offers in `_callback_tensor_inputs`."
    ),
    "clip_skip": (
        "Number of last layers of the text encoder to skip: 1 takes the output of the layer before the last. None "
        "takes the last."
    ),
    "cross_attention_kwargs": "Options handed to the attention processors of the denoising network, such as `scale`.",
    "deprecated": (
        "Old documented keywords: `callback(step, timestep, latents)` and `callback_steps`, every how many steps it is "
        "called; use `callback_on_step_end`."
    ),
    "eta": (
        "Amount of fresh noise per step of samplers that know it (DDIM, Song et al. 2021): 0 is deterministic, 1 is "
        "DDPM. Other samplers ignore it with a warning."
    ),
    "generator": (
        "Random stream, or one per picture; a generator on the CPU serves every device and gives the same noise on all "
        "of them. Without `generator` and `seed` the noise is new each time; the global stream is never used."
    ),
    "guidance_rescale": (
        "Strength in [0, 1] of the correction that keeps the standard deviation of guided predictions (Lin et al. "
        "2023, section 3.4); 0 is off."
    ),
    "guidance_scale": (
        "Weight w of classifier-free guidance (Ho & Salimans 2022): uncond + w (cond - uncond). Values of 1 and below "
        "switch it off and halve the work."
    ),
    "height": "Height of the picture in pixels, a multiple of the autoencoder's factor. None: the model's own size.",
    "ip_adapter_image": "Picture prompt for an IP-Adapter; needs a loaded adapter.",
    "ip_adapter_image_embeds": "Picture embeddings in place of `ip_adapter_image`, one tensor per adapter.",
    "latents": (
        "Starting noise with unit variance in place of a drawn one, (pictures, channels, height / factor, width / "
        "factor)."
    ),
    "negative_prompt": "What the picture should not show: one text for all prompts or one per prompt. Needs guidance.",
    "negative_prompt_embeds": "Encoded negative prompts (prompts, tokens, width) in place of `negative_prompt`.",
    "num_images_per_prompt": "Number of pictures per prompt.",
    "num_inference_steps": "Number of denoising steps; more are slower and usually better.",
    "output_type": (
        '"pil" (list of PIL pictures), "np" (array (pictures, height, width, channels) in [0, 1]), "pt" (tensor '
        '(pictures, channels, height, width) in [0, 1]) or, where there are latents, "latent" (not decoded).'
    ),
    "prompt": "What the picture should show: one text, or a list for several pictures.",
    "prompt_embeds": "Encoded prompts (prompts, tokens, width) in place of `prompt`, as `encode_prompt` returns them.",
    "return_dict": "True returns an output object, False a plain tuple of its fields.",
    "seed": (
        "Whole number, or one per picture, in place of `generator`: picture k of a call with seed s is the picture "
        "that seed s + k makes alone."
    ),
    "sigmas": "Own noise levels, descending, for samplers that take them; replaces `num_inference_steps`.",
    "timesteps": "Own timesteps, descending, for samplers that take them; replaces `num_inference_steps`.",
    "use_clipped_model_output": (
        "Recompute the noise prediction from the clipped picture prediction (DDIM only); None is the sampler's default."
    ),
    "width": "Width of the picture in pixels, a multiple of the autoencoder's factor. None: the model's own size.",
}
"""Parameter of a pipeline call -> meaning, shape and unit. Defaults stand in the signatures."""


def parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a `__call__`, without self."""
    found = inspect.signature(call).parameters
    return {name: p for name, p in found.items() if name != "self"}


def describe(call: Callable[..., Any]) -> str:
    """Return the argument section of a call's help, from its signature and the glossary.

    Raises:
        ConfigError: for a parameter that the glossary does not explain.
    """
    lines = []
    for name, parameter in parameters(call).items():
        if name not in GLOSSARY:
            raise ConfigError(
                f"The parameter {name!r} of {call.__qualname__} is not explained in pipelines.inputs.GLOSSARY."
            )
        default = "" if parameter.default in (parameter.empty, None) else f" Default: {parameter.default!r}."
        text = f"{name}: {GLOSSARY[name]}{default}"
        lines.append(textwrap.fill(text, 112, initial_indent=" " * 4, subsequent_indent=" " * 8))
    return "Args:\n" + "\n".join(lines)


def documented(call: Call_) -> Call_:
    """Decorate a `__call__`: its help gains the glossary's words for every parameter."""
    call.__doc__ = f"{inspect.cleandoc(call.__doc__ or '')}\n\n{describe(call)}\n"
    return call


@dataclass(frozen=True)
class Call:
    """The facts of one call that every helper needs.

    Attributes:
        device: where the run happens.
        prompts: number of prompts.
        per_prompt: pictures per prompt.
        rng: one random stream, or one per picture.
    """

    device: torch.device
    prompts: int
    per_prompt: int
    rng: Generators

    @property
    def images(self) -> int:
        """Number of pictures."""
        return self.prompts * self.per_prompt


def begin(
    pipe: Any,
    prompts: int,
    *,
    per_prompt: int | None = 1,
    generator: Generators = None,
    seed: int | Sequence[int] | None = None,
) -> Call:
    """Return the facts of a call for `prompts` prompts, checked.

    Raises:
        InputError: for counts below 1, for both `generator` and `seed`, or a list of another length than the pictures.
    """
    per_prompt = 1 if per_prompt is None else per_prompt
    seed = int(seed) if isinstance(seed, Integral) else seed
    check_count("num_images_per_prompt", per_prompt)
    return Call(
        pipe._execution_device, prompts, per_prompt, streams(prompts * per_prompt, generator=generator, seed=seed)
    )


def check_count(name: str, value: Any) -> None:
    """Raise InputError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"`{name}` is {value!r}; it must be a whole number.")
    if value < 1:
        raise InputError(f"`{name}` is {value}; it must be at least 1.")


def check_number(name: str, value: Any, *, low: float = float("-inf"), high: float = float("inf")) -> None:
    """Raise InputError unless `value` is a finite number within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"`{name}` is {value!r}; it must be a finite number.")
    if not low <= float(value) <= high:
        raise InputError(f"`{name}` is {value}; it must be between {low} and {high}.")


def check_steps(num_inference_steps: Any, timesteps: Any = None, sigmas: Any = None) -> None:
    """Raise InputError unless the steps are a whole number of at least 1, or one non-empty list of levels."""
    if timesteps is not None and sigmas is not None:
        raise InputError("Both `timesteps` and `sigmas` were given; pass one of them.")
    for name, levels in (("timesteps", timesteps), ("sigmas", sigmas)):
        if levels is not None and len(levels) == 0:
            raise InputError(f"`{name}` is empty; give at least one value or leave it out.")
    if timesteps is None and sigmas is None:
        check_count("num_inference_steps", num_inference_steps)


def check_size(height: Any, width: Any, *, factor: int) -> None:
    """Raise InputError unless height and width are positive multiples of `factor` pixels."""
    for name, value in (("height", height), ("width", width)):
        check_count(name, value)
        if value % factor:
            up = value // factor * factor + factor
            near = f"{up - factor} and {up}" if up > factor else str(up)
            raise InputError(f"`{name}` is {value}, not a multiple of {factor}; nearest: {near}.")


def check_latents(latents: Any, shape: Sequence[int]) -> None:
    """Raise InputError unless `latents` is None or a finite tensor of `shape`."""
    if latents is None:
        return
    if not isinstance(latents, torch.Tensor):
        raise InputError(f"`latents` is a {type(latents).__name__}; it must be a tensor.")
    if tuple(latents.shape) != tuple(shape):
        raise InputError(
            f"`latents` has shape {tuple(latents.shape)}, but this call needs {tuple(shape)}: "
            f"(pictures, channels, height, width)."
        )
    if not torch.isfinite(latents).all():
        raise InputError("`latents` holds NaN or infinity.")


def _texts(name: str, value: Any) -> int:
    """Return how many texts `value` holds, or raise InputError when it holds anything else."""
    if isinstance(value, str):
        return 1
    if isinstance(value, (list, tuple)) and value and all(isinstance(text, str) for text in value):
        return len(value)
    what = f"a list with {value!r}" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
    raise InputError(f"`{name}` is {what}; it must be a text or a non-empty list of texts.")


def check_prompts(
    prompt: Any, *, negative_prompt: Any = None, prompt_embeds: Any = None, negative_prompt_embeds: Any = None
) -> int:
    """Check prompts given as texts or as embeddings against each other and return how many there are.

    Raises:
        InputError: when neither or both of a pair are given, for a wrong type, or for batches or shapes that differ.
    """
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if text is not None and embeds is not None:
            raise InputError(f"Both `{name}` and `{name}_embeds` were given; pass one of them.")
        if embeds is not None and (not isinstance(embeds, torch.Tensor) or embeds.ndim != 3):
            raise InputError(f"`{name}_embeds` must be a tensor (prompts, tokens, width).")
    if prompt is None and prompt_embeds is None:
        raise InputError("Neither `prompt` nor `prompt_embeds` was given; say what the picture should show.")
    count = _texts("prompt", prompt) if prompt is not None else len(prompt_embeds)
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        negatives = _texts("negative_prompt", negative_prompt)
        if negatives != count:
            raise InputError(
                f"`negative_prompt` has {negatives} texts for {count} prompts; pass one text or one per prompt."
            )
    if negative_prompt_embeds is not None:
        expected = (count, *(negative_prompt_embeds if prompt_embeds is None else prompt_embeds).shape[1:])
        if tuple(negative_prompt_embeds.shape) != expected:
            raise InputError(
                f"`negative_prompt_embeds` has shape {tuple(negative_prompt_embeds.shape)}, not {expected}."
            )
    return count


def old_callback(call: Callable[..., Any], given: Mapping[str, Any]) -> tuple[Callable[..., Any] | None, int]:
    """Return the deprecated `callback` and `callback_steps` among the extra keywords of `call`, with a warning.

    Raises:
        ConfigError: for any other keyword, naming the nearest valid one.
    """
    if not given:
        return None, 1
    known = [name for name, p in parameters(call).items() if p.kind is not p.VAR_KEYWORD]
    check_known(call.__qualname__, given, [*known, "callback", "callback_steps"])
    callback, every = given.get("callback"), given.get("callback_steps", 1)
    warnings.warn("`callback` is deprecated; use `callback_on_step_end`.", FutureWarning, stacklevel=4)
    check_count("callback_steps", every)
    if callback is not None and not callable(callback):
        raise InputError(f"`callback` is a {type(callback).__name__}; it must be a function.")
    return callback, every
