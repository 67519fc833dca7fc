"""Driving any scheduler over a known network: by its table where it has one, and by hand through the public protocol.

A network here takes the sample as it is, not scaled, and the `Call`, which says at which level the sample lies; so one
network serves every space, prediction and library. Levels are read from the scheduler's `plan`, or else from its
`sigmas` or `alphas_cumprod`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError, check_choice, check_known
from ..core.rng import Generators, normal
from ..diffusion.prediction import KINDS, Preconditioning, Prediction
from ..diffusion.process import Level, Time, flow, preserving
from ..diffusion.sampling import sample
from ..diffusion.table import Plan, Row
from .analytic import CLEAN, Known

SPACES: dict[str, Callable[[Time, float], Level]] = {
    "preserving": preserving,
    "exploding": lambda t, sigma: Level(t, 1.0, sigma),
    "flow": flow,
}
"""Space of the samples -> the level that an entry of the scheduler's `sigmas` stands for."""


class Unreadable(InputError):
    """Something that a check needs is not on the scheduler; the message says what."""


@dataclass(frozen=True, slots=True)
class Call:
    """One network call: what the network is told, where the sample lies, the factor on its way into the network.

    `spread` holds the two log variances between which a learned variance interpolates. `jump` holds the weights of x
    and x_0 in the step, and the level that these two lead to before noise is added.
    """

    timestep: Time
    level: Level
    in_scale: float = 1.0
    spread: tuple[float, float] | None = None
    jump: tuple[float, float, Level] = (0.0, 1.0, CLEAN)


Network = Callable[[Tensor, Call], Tensor]


@dataclass(frozen=True)
class Schedule:
    """What a scheduler is going to do: its calls, its last level, what it takes the outputs for.

    Attributes:
        source: where the levels were read.
    """

    calls: tuple[Call, ...]
    end: Level
    prediction: Prediction
    init_sigma: float
    source: str

    @property
    def space(self) -> str:
        """The space of the samples: a name in `SPACES`, or "other"."""
        levels = [call.level for call in self.calls if call.level.sigma > 0 and call.level.alpha > 0]
        for name, test in (
            ("exploding", lambda v: v.alpha),
            ("preserving", lambda v: v.alpha**2 + v.sigma**2),
            ("flow", lambda v: v.alpha + v.sigma),
        ):
            if levels and all(math.isclose(test(level), 1.0, abs_tol=1e-5) for level in levels):
                return name
        return "other"


def table_calls(plan: Plan) -> tuple[Call, ...]:
    """Return the calls of a plan."""
    return tuple(
        Call(step.timestep, step.level, step.in_scale, row.spread, jump_of(row))
        for step, row in zip(plan.steps, plan.rows, strict=True)
    )


def jump_of(row: Row) -> tuple[float, float, Level]:
    """Return where the step of a row leads before its noise: the next level without the share of that noise.

    A weight of eps = (x - alpha x_0) / sigma is one of x and of x_0.
    """
    sigma = math.sqrt(max(row.after.sigma**2 - (row.noise or 0.0) ** 2, 0.0))
    of_noise = row.direction / row.level.sigma if row.level.sigma > 0 else 0.0
    weights = row.sample + of_noise, row.outputs[0] + row.data - of_noise * row.level.alpha
    return *weights, Level(row.after.t, row.after.alpha, sigma)


def network(data: Known, prediction: Prediction, *, distilled: bool = False) -> Network:
    """Return the perfect network of `data`; a learned variance is the posterior's own, the lower of the two bounds.

    Args:
        distilled: the network was distilled to jump along the probability flow (Song et al. 2023, 2303.01469; Zheng et
            al. 2024, 2402.19159) as far as the step goes, instead of predicting the mean.
    """

    def perfect(x: Tensor, call: Call) -> Tensor:
        output = data.output(x, call.level, prediction, jump=call.jump if distilled else None)
        if prediction.variance is None:
            return output
        low = math.exp(call.spread[0]) if call.spread else 0.0
        extra = torch.full_like(output, -1.0 if prediction.variance == "learned_range" else low)
        return torch.cat([output, extra], dim=1)

    return perfect


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
        self.check_by_hand(scheduler, steps)
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

    def check_by_hand(self, scheduler: Any, steps: int) -> None:
        """Raise Unreadable unless the documented loop drives this scheduler."""
        calls, times = len(self.schedule(steps).calls), len(scheduler.timesteps)
        if self.extra:
            raise Unreadable(f"a step of {self.name} needs other arguments: {', '.join(self.extra)}.")
        if calls != times:
            raise Unreadable(f"a run of {self.name} has {calls} calls, and `timesteps` has {times}.")

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


def number(value: Any) -> Time:
    """Return a timestep as a host number, whole where its type is."""
    return value.item() if isinstance(value, Tensor) else value


def read_levels(scheduler: Any, times: list[Time], scales: list[float], space: str | None) -> tuple[list[Level], str]:
    """Return the level of every call and of the end, and where they were read.

    Raises:
        Unreadable: when `sigmas` does not fit the timesteps and there is no `alphas_cumprod`.
    """
    sigmas, bars = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
    between = getattr(scheduler, "sigmas_interpol", None)
    if sigmas is not None and (len(sigmas) - len(times) in (0, 1) or between is not None):
        values = [float(s) for s in sigmas]
        values += [0.0] * (len(times) + 1 - len(values))
        if space is None:
            space = "exploding" if scales[0] != 1.0 or bars is None else "preserving"
            space = "flow" if hasattr(scheduler, "scale_noise") else space
        if space == "exploding" and between is not None:
            values = [*snapped(values, scales, [float(s) for s in between]), values[-1]]
        return [SPACES[space](t, s) for t, s in zip([*times, -1], values, strict=True)], f"sigmas, {space}"
    if bars is not None and all(float(t).is_integer() and 0 <= t < len(bars) for t in times):
        end = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        ratios = [math.sqrt((1 - a) / a) if a > 0 else math.inf for a in (*(float(bars[int(t)]) for t in times), end)]
        make = SPACES[space or "preserving"]
        return [make(t, r) for t, r in zip([*times, -1], ratios, strict=True)], "alphas_cumprod"
    raise Unreadable(
        f"The noise levels of {type(scheduler).__name__} cannot be read: it has no `plan`, no `alphas_cumprod` that "
        f"its timesteps point into, and no `sigmas` with one entry per timestep ({len(times)}) or one more."
    )


def snapped(values: list[float], scales: list[float], between: list[float]) -> list[float]:
    """Return the noise level of every call where some lie at interpolated levels, told by how inputs are scaled."""
    options = [*values, *between]
    probes = [math.sqrt(max(scale**-2 - 1.0, 0.0)) for scale in scales]
    return [min(options, key=lambda s, probe=probe: abs(s - probe)) for probe in probes]  # type: ignore[misc]
