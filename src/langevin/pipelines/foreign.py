"""Schedulers of other libraries and of users: whatever has the documented `set_timesteps` and `step` can be run.

Such an object keeps its state on itself, so a run works on a deep copy and the one passed in stays as it is.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.rng import Generators
from ..diffusion.grid import check_strength
from ..diffusion.process import Level
from ..diffusion.rows import Noise
from ..diffusion.table import Step, fractions


@dataclass(frozen=True)
class ForeignPlan:
    """The plan of a run with a foreign scheduler: the same interface as `diffusion.table.Plan`, driven by its `step`.

    Attributes:
        scheduler: a copy with the schedule of this run; runs copy it again.
        options: keywords of every `step`.
        first, end: the part of the schedule's network calls that this run makes.
    """

    scheduler: Any
    options: Mapping[str, Any]
    noise_dtype: ClassVar[None] = None
    first: int = 0
    end: int | None = None

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the first sample."""
        return float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    @property
    def timesteps(self) -> Tensor:
        """The timesteps of this run."""
        return self.scheduler.timesteps[self.first : self.end]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The network calls. How the scheduler scales its input is read off a rehearsal with single numbers."""
        times, rehearsal = self.timesteps, self.begin(None)
        one, steps = torch.ones(1, 1, 1, 1, device=times.device), []
        for index, time in enumerate(times):
            factor, level = float(rehearsal.scaled(one, time)), Level(t=time.item(), alpha=1.0, sigma=0.0)
            last = index == len(times) - 1
            steps.append(Step(index, len(times), time.item(), level, level, factor, last))
            if not last:
                rehearsal.advance(one, torch.zeros_like(one), index, generator=torch.Generator(one.device))
        return tuple(steps)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number, from 0, of the step that each network call belongs to."""
        order = int(getattr(self.scheduler, "order", 1))
        return tuple(k // order for k in range(len(self.timesteps)))

    def tail(self, strength: float) -> ForeignPlan:
        """Return the last part of this run, as `Plan.tail` does, by whole steps of the scheduler's `order`."""
        check_strength(strength)
        order = int(getattr(self.scheduler, "order", 1))
        count = len(self.scheduler.timesteps)
        steps = max(-(-count // order), 1)
        first = (steps - max(min(int(steps * strength), steps), 1)) * order
        return replace(self, first=min(first, count - 1))

    def slice(self, start: float | None = None, end: float | None = None) -> ForeignPlan:
        """Return the part of this run between two fractions of the training schedule, as `Plan.slice` does."""
        length = int(getattr(self.scheduler.config, "num_train_timesteps", 1000))
        times = [float(t) for t in self.timesteps]
        first, stop = fractions(times, length, start, end)
        return replace(self, first=self.first + first, end=self.first + stop)

    def start(self, noise: Tensor, source: Tensor | None = None) -> Tensor:
        """Return the first sample: noise alone, or `source` noised to the level of the first step."""
        if source is None:
            return noise * self.init_noise_sigma
        return self._noised(self.first, source, noise)

    def settle(self, step: Step, source: Tensor, noise: Tensor) -> Tensor:
        """Return `source` noised to where the sample is after a step, which is not the last one."""
        return self._noised(self.first + step.index + 1, source, noise)

    def _noised(self, index: int, source: Tensor, noise: Tensor) -> Tensor:
        if not callable(getattr(self.scheduler, "add_noise", None)):
            raise ConfigError(f"{type(self.scheduler).__name__} has no `add_noise`; a start from a picture needs it.")
        return self.scheduler.add_noise(source, noise, self.scheduler.timesteps[index : index + 1])

    def begin(self, noise: Noise | None = None) -> ForeignRun:
        """Start a run; the scheduler draws its own noise, from the generator in `options`."""
        scheduler = copy.deepcopy(self.scheduler)
        if self.first and callable(getattr(scheduler, "set_begin_index", None)):
            scheduler.set_begin_index(self.first)
        return ForeignRun(scheduler, self.options, self.first)


class ForeignRun:
    """One run of a foreign scheduler, on a copy of its own."""

    def __init__(self, scheduler: Any, options: Mapping[str, Any], first: int = 0) -> None:
        self.scheduler, self.options, self.first = scheduler, dict(options), first

    def scaled(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the sample as the network wants it; the protocol asks for this call before every step."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return x if scale is None else scale(x, time)

    def advance(self, x: Tensor, output: Tensor, index: int, **changed: Any) -> Tensor:
        """Return the sample after step `index`; `changed` replaces options that the scheduler's `step` takes."""
        options = self.options | {name: value for name, value in changed.items() if name in self.options}
        time = self.scheduler.timesteps[self.first + index]
        self.scaled(x, time)
        result = self.scheduler.step(output, time, x, **options)
        return result[0] if isinstance(result, (tuple, list)) else result.prev_sample


def foreign_plan(
    scheduler: Any,
    num_inference_steps: int | None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    generator: Generators = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> ForeignPlan:
    """Return the plan of a run with a scheduler that has the documented protocol.

    Args:
        generator: given to `step` when it takes one.
        options: further keywords of `step`, such as `eta`.

    Raises:
        ConfigError: when the scheduler lacks the protocol, or does not take own timesteps or sigmas.
    """
    for name in ("set_timesteps", "step"):
        if not callable(getattr(scheduler, name, None)):
            raise ConfigError(f"The scheduler is a {type(scheduler).__name__}, which has no `{name}`.")
    scheduler = copy.deepcopy(scheduler)
    own = {name: list(v) for name, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
    takes = inspect.signature(scheduler.set_timesteps).parameters
    for name in own:
        if name not in takes:
            raise ConfigError(f"{type(scheduler).__name__} takes no own `{name}`; use `num_inference_steps`.")
    where = {"device": device} if "device" in takes else {}
    scheduler.set_timesteps(**own, **where) if own else scheduler.set_timesteps(num_inference_steps, **where)
    known = inspect.signature(scheduler.step).parameters
    given = {**options, "return_dict": False, "generator": generator}
    return ForeignPlan(scheduler, {name: value for name, value in given.items() if name in known})
