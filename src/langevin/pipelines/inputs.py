"""What a call is given: the checks that precede any work, and the facts of a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..core.config import keywords
from ..core.errors import InputError, check_choice, check_count, check_known, check_number
from ..core.images import OUTPUT_TYPES
from ..core.logging import get_logger
from ..core.rng import Generators, streams
from ..diffusion.table import Plan
from ..prompts import SYNTAXES, parse_all
from ..prompts.encoding import LONG_PROMPTS
from .callbacks import check_wanted, wanted_by
from .runs import call_of

logger = get_logger(__name__)
TEXTS = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@dataclass(frozen=True)
class Call:
    """One call of a pipeline: its arguments, checked, and the facts that follow from them.

    Attributes:
        pipe: the pipeline.
        given: the arguments by name, as the signature of the pipeline's `__call__` has them.
        device: where the run happens.
        prompts: number of prompts.
        per_prompt: pictures per prompt.
        rng: one random stream, or one per picture.
        numbers: the number of the step of every network call of the run, once it is planned.
    """

    pipe: Any
    given: Mapping[str, Any]
    device: torch.device
    prompts: int
    per_prompt: int
    rng: Generators
    numbers: tuple[int, ...] = (0,)

    def planned(self, plan: Plan) -> Call:
        """Return it with the steps of a plan; samplers may ask the network more than once per step."""
        return replace(self, numbers=plan.numbers)

    @property
    def images(self) -> int:
        """Number of pictures."""
        return self.prompts * self.per_prompt

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or `default` when this pipeline's call has none of that name."""
        return self.given.get(name, default)

    def pick(self, *names: str) -> dict[str, Any]:
        """Return some of the arguments, for a function that takes them under the same names."""
        return {name: self.given[name] for name in names if name in self.given}


def begin(pipe: Any, given: Mapping[str, Any], *, prompts: int | None = None) -> Call:
    """Return the facts of a call, after checking all that can be checked without knowing the task.

    Args:
        given: the call's arguments: `locals()` at the top of its body.
        prompts: how many prompts there are, for calls without any.

    Raises:
        InputError: for a value that cannot be used, for both `generator` and `seed`, or a list of another length than
            the pictures.
        ConfigError: for an unknown keyword.
    """
    given = {name: value for name, value in given.items() if name not in ("self", "__class__")}
    given |= old_keywords(call_of(pipe), given.pop("deprecated", {}))
    check_wanted(wanted_by(given), pipe._callback_tensor_inputs)
    check_steps(given.get("num_inference_steps", 1), given.get("timesteps"), given.get("sigmas"))
    known = keywords(call_of(pipe))
    optional = {name for name, parameter in known.items() if parameter.default is None} | {"num_images_per_prompt"}
    for name, value in given.items():
        if name in CHECKS and (value is not None or name not in optional):
            CHECKS[name](name, value)
    if prompts is None:
        prompts = check_prompts(**{name: given.get(name) for name in TEXTS})
        check_second_prompts(given, prompts)
    if "prompt_syntax" in given:
        for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
            parse_all(given.get(name) or (), given["prompt_syntax"])
    per_prompt = given.get("num_images_per_prompt") or 1
    rng = streams(prompts * per_prompt, generator=given.get("generator"), seed=given.get("seed"))
    call = Call(pipe, given, pipe._execution_device, prompts, per_prompt, rng)
    if "ip_adapter_image" in given:
        pipe._check_picture_prompts(call)
    return call


def check_rows(what: str, rows: int, call: Call) -> None:
    """Raise InputError unless there is one of `what`, one per prompt, or one per picture."""
    if rows not in (1, call.prompts, call.images):
        raise InputError(f"{rows} {what} were given for {call.prompts} prompts; pass one, or one per prompt.")


def check_finite(name: str, value: Any) -> None:
    """Raise InputError unless `value` is a tensor of finite numbers."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"`{name}` is a {type(value).__name__}; it must be a tensor.")
    if not torch.isfinite(value).all():
        raise InputError(f"`{name}` holds NaN or infinity.")


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
    """Raise InputError unless `latents` is None or of `shape`."""
    if latents is not None and tuple(latents.shape) != tuple(shape):
        raise InputError(
            f"`latents` has shape {tuple(latents.shape)}, but this call needs {tuple(shape)}: "
            f"(pictures, channels, height, width)."
        )


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


def check_second_prompts(given: Mapping[str, Any], count: int) -> None:
    """Check the prompts of a second encoder and the pooled embeddings of a call with `count` prompts.

    Raises:
        InputError: for a wrong type, shape or number, texts beside embeddings, or embeddings without pooled ones.
    """
    for name in ("prompt", "negative_prompt"):
        embeds, pooled = given.get(f"{name}_embeds"), given.get(pooled_name(name))
        if (text := given.get(f"{name}_2")) is not None:
            if embeds is not None:
                raise InputError(f"Both `{name}_2` and `{name}_embeds` were given; pass one of them.")
            found = _texts(f"{name}_2", text)
            if not isinstance(text, str) and found != count:
                raise InputError(f"`{name}_2` has {found} texts for {count} prompts; pass one text or one per prompt.")
        if pooled_name(name) in given and embeds is not None and pooled is None:
            raise InputError(f"`{name}_embeds` need `{pooled_name(name)}` beside them; `encode_prompt` returns both.")
        if pooled is not None and (not isinstance(pooled, torch.Tensor) or pooled.ndim != 2 or len(pooled) != count):
            what = tuple(pooled.shape) if isinstance(pooled, torch.Tensor) else f"a {type(pooled).__name__}"
            raise InputError(f"`{pooled_name(name)}` is {what}; it must be a tensor ({count}, width).")


def pooled_name(prompt: str) -> str:
    """Return the name of the pooled embeddings of `prompt` or `negative_prompt`."""
    return prompt.replace("prompt", "pooled_prompt_embeds")


def check_pair(name: str, value: Any) -> None:
    """Raise InputError unless `value` is two numbers of pixels, height or top first."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InputError(f"`{name}` is {value!r}; it must be two numbers of pixels, (height, width) or (top, left).")
    for part in value:
        check_number(name, part, low=0.0)


def old_keywords(call: Callable[..., Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the deprecated `callback` and `callback_steps` among the extra keywords of `call`, with a warning.

    Raises:
        ConfigError: for any other keyword, naming the nearest valid one.
    """
    if given:
        check_known(call.__qualname__, given, [*keywords(call), "callback", "callback_steps"])
        warnings.warn("`callback` is deprecated; use `callback_on_step_end`.", FutureWarning, stacklevel=4)
    return given


def check_callback(name: str, value: Any) -> None:
    """Raise InputError unless `value` is None or can be called."""
    if value is not None and not callable(value):
        raise InputError(f"`{name}` is a {type(value).__name__}; it must be a function.")


def check_each(name: str, value: Any, check: Callable[[str, Any], None] = check_number) -> None:
    """Check a number, or every entry of a list of numbers."""
    for one in value if isinstance(value, (list, tuple)) else [value]:
        check(name, one)


def check_switch(name: str, value: Any) -> None:
    """Raise InputError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"`{name}` is {value!r}; it must be True or False.")


share = partial(check_number, low=0.0, high=1.0)
"""Checks a number between 0 and 1."""

CHECKS: dict[str, Callable[[str, Any], None]] = {
    "adapter_conditioning_factor": share,
    "adapter_conditioning_scale": check_each,
    "aesthetic_score": check_number,
    "batch_size": check_count,
    "callback": check_callback,
    "callback_on_step_end": check_callback,
    "callback_steps": check_count,
    "clip_skip": partial(check_count, low=0),
    "control_guidance_end": partial(check_each, check=share),
    "control_guidance_start": partial(check_each, check=share),
    "controlnet_conditioning_scale": check_each,
    "crops_coords_top_left": check_pair,
    "denoising_end": share,
    "denoising_start": share,
    "depth_map": check_finite,
    "eta": share,
    "guidance_rescale": share,
    "guidance_scale": check_number,
    "guess_mode": check_switch,
    "image_guidance_scale": check_number,
    "latents": check_finite,
    "long_prompt": lambda name, value: check_choice(f"`{name}`", value, LONG_PROMPTS),
    "mask_feather": partial(check_count, low=0),
    "masked_image_latents": check_finite,
    "negative_aesthetic_score": check_number,
    "negative_crops_coords_top_left": check_pair,
    "negative_original_size": check_pair,
    "negative_target_size": check_pair,
    "noise_level": partial(check_count, low=0),
    "num_images_per_prompt": check_count,
    "original_size": check_pair,
    "padding_mask_crop": partial(check_count, low=0),
    "output_type": lambda name, value: check_choice(name, value, OUTPUT_TYPES),
    "prompt_syntax": lambda name, value: check_choice(f"`{name}`", value, SYNTAXES),
    "strength": share,
    "target_size": check_pair,
}
"""Argument of a call -> its check, whatever the pipeline. What depends on several arguments stands in the tasks."""
