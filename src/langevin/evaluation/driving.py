"""Driving any scheduler over a known network: by its table where it has one, and by hand through the public protocol.

A network here takes the sample as it is, not scaled, and the `Call`, which says at which level the sample lies; so one
network serves every space, prediction and library.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, check_choice, check_known
from ..core.rng import Generators, normal
from ..diffusion.prediction import KINDS, Preconditioning, Prediction
from ..diffusion.sampling import sample
from ..diffusion.table import Plan
from .schedule import SPACES, Call, Network, Schedule, Unreadable, number, read_levels, table_calls


class Bench:
    """A scheduler under examination. The object passed in is never changed: every run works on a copy.

    Args:
        scheduler: any object with `set_timesteps`, `timesteps` and `step`.
        options: keywords of its `set_timesteps`, `plan` and `step`.
        space: the space of its samples, a name in `SPACES`, where that cannot be read off the object.

    Raises:
        ConfigError: when the protocol is missing, or an option belongs to neither call.
    """

    def __init__(self, scheduler: Any, *, options: Mapping[str, Any] | None = None, space: str | None = None) -> None:
        for name in ("set_timesteps", "step"):
            if not callable(getattr(scheduler, name, None)):
                raise ConfigError(f"A {type(scheduler).__name__} has no `{name}`, so it cannot be driven as a sampler.")
        if space is not None:
            check_choice("space", space, SPACES)
        self.scheduler, self.space = scheduler, space
        self.name = type(scheduler).__name__
        options = dict(options or {})
        self.has_table = callable(getattr(scheduler, "plan", None))
        shaping = set(inspect.signature(scheduler.set_timesteps).parameters) - {"num_inference_steps", "device"}
        stepping = set(inspect.signature(scheduler.step).parameters) - {"model_output", "timestep", "sample"}
        shaping |= set(getattr(scheduler, "grid_options", ()))
        check_known(self.name, options, shaping | stepping)
        self.shape = {k: v for k, v in options.items() if k in shaping}
        self.options = {k: v for k, v in options.items() if k not in shaping}
        self.takes_generator = "generator" in stepping
        self.extra = extra_arguments(scheduler.step)
        self._schedules: dict[int, Schedule] = {}

    @property
    def order(self) -> int:
        """Network calls per step, as the scheduler declares them."""
        return int(getattr(self.scheduler, "order", 1))

    def config(self, name: str, default: Any = None) -> Any:
        """Return an entry of the scheduler's configuration."""
        config = getattr(self.scheduler, "config", {})
        return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)

    # ---- what it is going to do --------------------------------------------------------------------------------------

    def plan(self, steps: int) -> Plan:
        """Return the table of a run.

        Raises:
            Unreadable: when the scheduler has none.
        """
        if not self.has_table:
            raise Unreadable(f"{self.name} has no `plan`, so there is no table to compare with.")
        return self.scheduler.plan(steps, **self.shape, **self.options)

    def ready(self, steps: int) -> Any:
        """Return a copy of the scheduler with a schedule of `steps`."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps, **self.shape)
        return scheduler

    def schedule(self, steps: int) -> Schedule:
        """Return the calls of a run of `steps`.

        Raises:
            Unreadable: when the levels stand nowhere on the scheduler.
        """
        if steps not in self._schedules:
            self._schedules[steps] = self._planned(steps) if self.has_table else self._foreign(steps)
        return self._schedules[steps]

    def able(self, steps: int) -> bool:
        """Tell whether a run of `steps` can be set up."""
        try:
            return bool(self.schedule(steps).calls)
        except Exception:
            return False

    def _planned(self, steps: int) -> Schedule:
        plan = self.plan(steps)
        return Schedule(table_calls(plan), plan.grid[-1], plan.prediction, plan.init_noise_sigma, "plan")

    def _foreign(self, steps: int) -> Schedule:
        scheduler = self.ready(steps)
        times = [number(t) for t in scheduler.timesteps]
        scales = self._scales(scheduler, len(times))
        levels, source = read_levels(scheduler, times, scales, self.space)
        *levels, end = levels
        calls = tuple(Call(*entry) for entry in zip(times, levels, scales, strict=True))
        init = float(getattr(scheduler, "init_noise_sigma", 1.0))
        return Schedule(calls, end, self._prediction(), init, source)

    def _prediction(self) -> Prediction:
        """Return what a foreign scheduler says about the outputs it expects; epsilon if it says nothing."""
        kind = self.config("prediction_type", "epsilon")
        if self.config("sigma_data") is not None and kind in ("epsilon", "v_prediction"):
            return Prediction(scaling=Preconditioning(self.config("sigma_data"), sign=1 if kind == "epsilon" else -1))
        if kind not in KINDS:
            raise Unreadable(f"{self.name} expects outputs of kind {kind!r}; known here: {', '.join(KINDS)}.")
        return Prediction("flow_prediction" if "FlowMatch" in self.name else kind)

    def _scales(self, scheduler: Any, count: int) -> list[float]:
        """Return the factor of the network's input at every call, read off a rehearsal with single numbers."""
        scale = getattr(scheduler, "scale_model_input", None)
        if scale is None:
            return [1.0] * count
        one, found = torch.ones(1, 1, 1, 1, dtype=torch.float64), []
        for t in scheduler.timesteps:
            found.append(float(scale(one, t)))
            if found == [1.0]:
                return [1.0] * count
            self._step(scheduler, torch.zeros_like(one), t, one, torch.Generator())
        return found

    # ---- doing it ----------------------------------------------------------------------------------------------------

    def _step(self, scheduler: Any, output: Tensor, t: Any, x: Tensor, generator: Generators) -> Tensor:
        given = {"generator": generator} if self.takes_generator else {}
        result = scheduler.step(output, t, x, **given, **self.options)
        return result[0] if isinstance(result, (tuple, list)) else result.prev_sample

    def by_hand(
        self,
        steps: int,
        model: Network,
        x: Tensor,
        *,
        generator: Generators = None,
        first: int = 0,
        watch: Callable[[Tensor], None] | None = None,
        scheduler: Any = None,
    ) -> Tensor:
        """Run the documented loop over `timesteps` and return the last sample.

        Args:
            first: the call at which the run begins; `set_begin_index` is told.
            watch: sees every sample after its step.
            scheduler: the object to use, with its schedule set; a fresh copy if None.
        """
        scheduler = self.ready(steps) if scheduler is None else scheduler
        if reason := self._obstacle(scheduler, steps):
            raise Unreadable(reason)
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        scale = getattr(scheduler, "scale_model_input", None)
        for call, t in zip(self.schedule(steps).calls[first:], scheduler.timesteps[first:], strict=True):
            if scale is not None:
                scale(x, t)
            x = self._step(scheduler, model(x, call), t, x, generator)
            if watch:
                watch(x)
        return x

    def _obstacle(self, scheduler: Any, steps: int) -> str | None:
        """Return why the documented loop does not drive this scheduler, or None."""
        calls, times = len(self.schedule(steps).calls), len(scheduler.timesteps)
        if self.extra:
            return f"a step of {self.name} needs other arguments: {', '.join(self.extra)}."
        return None if calls == times else f"a run of {self.name} has {calls} calls, and `timesteps` has {times}."

    def by_table(
        self,
        steps: int,
        model: Network,
        x: Tensor,
        *,
        generator: Generators = None,
        first: int = 0,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Run the scheduler's plan through the library's own loop and return the last sample; see `by_hand`."""
        plan = self.plan(steps)
        return run_plan(plan.part(first) if first else plan, model, x, generator=generator, watch=watch)

    def run(self, steps: int, model: Network, x: Tensor, **options: Any) -> Tensor:
        """Run by the table where there is one, else by hand; see `by_hand`."""
        return (self.by_table if self.has_table else self.by_hand)(steps, model, x, **options)

    def run_steps(self, steps: int, model: Network, x: Tensor, **options: Any) -> Tensor:
        """Run through the scheduler's own `step` where the documented loop drives it, else as `run` does."""
        scheduler = self.ready(steps)
        if self._obstacle(scheduler, steps) is not None:
            return self.run(steps, model, x, **options)
        return self.by_hand(steps, model, x, scheduler=scheduler, **options)


def run_plan(
    plan: Plan,
    model: Network,
    x: Tensor,
    *,
    generator: Generators = None,
    noise: Callable[[], Tensor] | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Run a plan over a known network; `noise` replaces the draws from `generator`."""
    dtype = plan.noise_dtype or x.dtype
    draw = noise or (lambda: normal(x.shape, generator=generator, dtype=dtype))
    calls = table_calls(plan)
    see = (lambda step, after: watch(after)) if watch else None
    return sample(lambda now, step: model(now, calls[step.index]), x, plan, noise=draw, on_step=see)


def extra_arguments(step: Callable[..., Any]) -> list[str]:
    """Return the arguments without default that a `step` takes instead of, or beside, the three documented ones."""
    names = list(inspect.signature(step).parameters.values())
    return [p.name for p in names if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD][3:] or [
        p.name for p in names[:3] if p.name not in ("model_output", "timestep", "sample", "t", "x", "output")
    ]
