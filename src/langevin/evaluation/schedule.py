"""What a scheduler is going to do: the calls that it makes, and at which noise levels.

A table says it itself. From any other scheduler levels are read off its `sigmas` or `alphas_cumprod`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..diffusion.prediction import Prediction
from ..diffusion.process import Level, Time, flow, preserving
from ..diffusion.rows import Row
from ..diffusion.table import Plan
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
