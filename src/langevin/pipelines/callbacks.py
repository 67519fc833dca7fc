"""Callbacks at the end of a step: the documented objects, and the adapter between them and the sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.config import ConfigMixin, register_to_config
from ..core.errors import InputError, did_you_mean
from ..core.logging import get_logger
from ..diffusion.sampling import Stop
from ..diffusion.table import Step
from ..families.common import timestep_on
from .runs import RunState

logger = get_logger(__name__)
Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]


class PipelineCallback(ConfigMixin):
    """Base of callback objects: set `tensor_inputs` and write `callback_fn`.

    Args:
        cutoff_step_ratio: the fraction of the steps, in [0, 1], after which the callback acts.
        cutoff_step_index: the step after which it acts; give one of the two and None for the other.
    """

    config_name = "callback_config.json"
    tensor_inputs: ClassVar[Sequence[str]]

    @register_to_config
    def __init__(self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None) -> None:
        if (cutoff_step_ratio is None) == (cutoff_step_index is None):
            raise InputError("Pass exactly one of `cutoff_step_ratio` and `cutoff_step_index`, and None for the other.")
        if cutoff_step_ratio is not None and not 0.0 <= float(cutoff_step_ratio) <= 1.0:
            raise InputError(f"`cutoff_step_ratio` is {cutoff_step_ratio}; it is a fraction between 0 and 1.")
        if not hasattr(self, "tensor_inputs"):
            name = type(self).__name__
            raise InputError(f"{name} must name the tensors it wants in `tensor_inputs`, for example ['latents'].")

    def cutoff_step(self, pipeline: Any) -> int:
        """Return the index of the step at which the callback acts in the present run."""
        if self.config.cutoff_step_index is not None:
            return self.config.cutoff_step_index
        return int(pipeline.num_timesteps * self.config.cutoff_step_ratio)

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the tensors to go on with; `callback_kwargs` holds those named in `tensor_inputs`."""
        raise NotImplementedError(f"{type(self).__name__} must write callback_fn.")

    def __call__(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        return self.callback_fn(pipeline, step_index, timestep, callback_kwargs)


class MultiPipelineCallbacks:
    """Several callback objects, called in order, each with what the one before returned."""

    def __init__(self, callbacks: Sequence[PipelineCallback]) -> None:
        self.callbacks = list(callbacks)

    @property
    def tensor_inputs(self) -> list[str]:
        """The names that any of the callbacks wants, each once."""
        return list(dict.fromkeys(name for callback in self.callbacks for name in callback.tensor_inputs))

    def __call__(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        return reduce(lambda kept, each: each(pipeline, step_index, timestep, kept), self.callbacks, callback_kwargs)


class SDCFGCutoffCallback(PipelineCallback):
    """Switch classifier-free guidance off after a step of a Stable Diffusion run: the rest takes half the time."""

    tensor_inputs = ("prompt_embeds",)

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Set the guidance scale of the run to 0 and keep the rows of the positive prompts."""
        if step_index == self.cutoff_step(pipeline) and pipeline.do_classifier_free_guidance:
            callback_kwargs["prompt_embeds"] = callback_kwargs["prompt_embeds"].chunk(2)[1]
            pipeline._guidance_scale = 0.0
        return callback_kwargs


class IPAdapterScaleCutoffCallback(PipelineCallback):
    """Let picture prompts count no more after a step: the scale of the IP-Adapters becomes 0, and stays so."""

    tensor_inputs = ()

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Set the scale of the pipeline's IP-Adapters to 0 at its step."""
        if step_index == self.cutoff_step(pipeline):
            pipeline.set_ip_adapter_scale(0.0)
        return callback_kwargs


def wanted_by(call: Mapping[str, Any]) -> list[str]:
    """Return the tensor names that a call's callback asks for: its own `tensor_inputs`, or those the call names."""
    callback, names = call.get("callback_on_step_end"), call.get("callback_on_step_end_tensor_inputs", ())
    return list(getattr(callback, "tensor_inputs", names)) if callback is not None else []


def check_wanted(names: Iterable[str], offered: Sequence[str]) -> None:
    """Raise InputError for a tensor name the pipeline does not offer to callbacks."""
    for name in names:
        if name not in offered:
            raise InputError(f"`callback_on_step_end_tensor_inputs` names {name!r}{did_you_mean(name, offered)}")


class StepHook:
    """What the sampling loop calls after every step of a run: the progress bar, the callbacks, the switch to stop.

    Args:
        run: the run, whose pipeline the callbacks receive.
        model: the denoiser of the run; its `tensors()` are offered to callbacks and `replace` takes them back.
        bar: the progress bar.

    The call names the callback, `(pipe, index, timestep, tensors) -> tensors or None`, the tensors that it receives,
    and the deprecated `(index, timestep, latents)` callback with every how many steps it is called.
    """

    def __init__(self, run: RunState, model: Any, bar: Any) -> None:
        self.run, self.model, self.bar = run, model, bar
        call = run.call
        self.callback, self.names = call.get("callback_on_step_end"), wanted_by(call.given)
        self.old, self.every = call.get("callback"), call.get("callback_steps", 1)

    def __call__(self, step: Step, x: Tensor) -> Tensor:
        """Report a step and return the sample to go on with.

        Raises:
            Stop: when the run was interrupted.
        """
        self.bar.update()
        if self.callback is not None:
            x = self.ask(self.callback, step, x)
        if self.old is not None and step.index % self.every == 0:
            self.old(step.index, timestep_on(step.timestep, torch.device("cpu")), x)
        if self.run.interrupt and not step.last:
            logger.warning(
                "The run was interrupted after step %d of %d; its result is unfinished.", step.index + 1, step.count
            )
            raise Stop(x)
        return x

    def ask(self, callback: Callback, step: Step, x: Tensor) -> Tensor:
        """Call the callback and take over what it returns; what comes back untouched changes nothing."""
        more = self.model.tensors(step.index) if len(self.names) > ("latents" in self.names) else {}
        handed = {name: {"latents": x, **more}.get(name) for name in self.names}
        before = {name: edits_of(value) for name, value in handed.items()}
        pipe = self.run.call.pipe
        returned = callback(pipe, step.index, timestep_on(step.timestep, torch.device("cpu")), dict(handed))
        returned = {} if returned is None else dict(returned)
        check_wanted(returned, pipe._callback_tensor_inputs)
        x = returned.pop("latents", x)
        changed = {
            name: value
            for name, value in returned.items()
            if value is not handed.get(name) or before[name] is None or edits_of(value) != before[name]
        }
        if changed:
            self.model.replace(step.index, **changed)
        return x


def edits_of(value: Any) -> int | None:
    """Return how often a tensor was edited in place; None where torch does not count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None
