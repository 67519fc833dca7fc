"""Errors of a sampler against the exact solution: by number of steps, on its own levels and on smooth ones.

A deterministic sampler is compared sample by sample with the probability flow. A stochastic one is compared in mean and
variance. On Gaussian data a table is an affine map of its first sample and its draws, so its mean and variance follow
exactly from one run of a batch in which every row is moved along one of them; no draw is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..core.errors import NonFiniteError
from ..core.rng import seeded
from ..diffusion.process import Level
from ..diffusion.table import Plan
from .analytic import Gaussian, Mixture
from .driving import Bench, run_plan
from .schedule import SPACES, Unreadable, network

SMOOTH = (20, 40, 80, 160)
"""Numbers of steps on the smooth levels."""
HIGH, LOW = 20.0, 0.02
"""Ends of the smooth levels, sigma / alpha."""
FINE, COARSE = 1e-11, 3e-6
"""What counts as rounding: of a table, which is float64, and of a foreign scheduler, which may be float32 inside."""
POINTS = 48
"""Samples of a mixture that are followed."""


@dataclass(frozen=True)
class Errors:
    """The errors of one run: at its end, and of the sample that enters the last call (None for a run of one call)."""

    calls: int
    end: float
    inner: float | None


@lru_cache(maxsize=64)
def start(data: Gaussian | Mixture, level: Level) -> Tensor:
    """Return samples at `level` that a run can start from: two deviations to both sides, or draws of a mixture."""
    if isinstance(data, Mixture):
        return data.noised((POINTS, data.dimension, 1, 1), level, seeded(7))
    scores = torch.linspace(-2, 2, 32, dtype=torch.float64).reshape(1, 2, 4, 4)
    return level.alpha * data.mean + math.sqrt(data.variance(level)) * scores


@lru_cache(maxsize=64)
def solution(data: Gaussian | Mixture, first: Level, end: Level) -> Tensor:
    """Return where the probability flow carries `start`."""
    return data.transport(start(data, first), first, end)


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, infinity for NaN."""
    gap = float((a.double() - b.double()).abs().max())
    return gap if gap == gap else math.inf


def errors(bench: Bench, data: Gaussian | Mixture, steps: int, *, distilled: bool = False) -> Errors:
    """Return the errors of a deterministic run of `steps` on the scheduler's own levels."""
    schedule = bench.schedule(steps)
    levels = [call.level for call in schedule.calls]
    seen: list[Tensor] = []
    model = network(data, schedule.prediction, distilled=distilled)
    end = bench.run(steps, model, start(data, levels[0]), watch=seen.append)
    inner = None
    if len(seen) > 1 and isinstance(data, Gaussian):
        inner = distance(seen[-2], solution(data, levels[0], levels[-1]))
    return Errors(len(levels), distance(end, solution(data, levels[0], schedule.end)), inner)


# ---- smooth levels ---------------------------------------------------------------------------------------------------


def smooth(plan: Plan, space: str, count: int, labels: Callable[[Level], float]) -> Plan:
    """Return the same solver and prediction on `count` steps that are even in lambda, in the same space.

    On the scheduler's own levels the observed order also tells of rounded timesteps and of the last step to sigma = 0,
    which is finite in no variable; here it tells of the solver alone.
    """
    ratios = np.exp(np.linspace(math.log(HIGH), math.log(LOW), count + 1))
    make = SPACES[space] if space != "flow" else lambda t, r: SPACES["flow"](t, r / (1 + r))
    levels = (make(0, float(r)) for r in ratios)
    grid = tuple(replace(level, t=labels(level)) for level in levels)
    return replace(plan, grid=grid, first=0, end=None)


def labelling(plan: Plan) -> Callable[[Level], float]:
    """Return the map from a level to the timestep that the scheduler's own schedule gives it."""
    known = sorted((level.lam, level.t) for level in plan.grid if math.isfinite(level.lam))
    lams, times = (np.array(values, dtype=np.float64) for values in zip(*known, strict=True))
    return lambda level: float(np.interp(level.lam, lams, times))


def smooth_errors(plan: Plan, data: Gaussian, *, distilled: bool = False) -> float:
    """Return the error of a run of `plan`: of the sample, or of the standard deviation where noise is drawn."""
    first, end = plan.steps[0].level, plan.grid[-1]
    model = network(data, plan.prediction, distilled=distilled)
    if plan.stochastic:
        return weak_error(moments(plan, data, distilled=distilled), data, end)
    return distance(run_plan(plan, model, start(data, first)), solution(data, first, end))


# ---- mean and variance -----------------------------------------------------------------------------------------------


def moments(plan: Plan, data: Gaussian, *, distilled: bool = False) -> tuple[float, float]:
    """Return the exact mean and standard deviation at the end of a run whose first samples are distributed exactly.

    Raises:
        Unreadable: when the steps are not affine, as Langevin corrections of adaptive size are.
    """
    model, level, draws = network(data, plan.prediction, distilled=distilled), plan.steps[0].level, 0
    centre, deviation = level.alpha * float(data.mean), math.sqrt(data.variance(level))

    def count() -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    start = torch.full((1, 1, 1, 1), centre, dtype=torch.float64)
    try:
        run_plan(plan, model, start, noise=count)
    except NonFiniteError as error:
        raise Unreadable("without draws its steps are not finite, so mean and deviation cannot be followed") from error

    def moved(size: float) -> Tensor:
        x = start.repeat(draws + 2, 1, 1, 1)
        x[1] += size * deviation
        impulses = iter(size * torch.eye(draws + 2, dtype=torch.float64)[2:].reshape(draws, draws + 2, 1, 1, 1))
        return run_plan(plan, model, x, noise=lambda: next(impulses)).flatten()

    one, half = moved(1.0), moved(0.5)
    if float((one + one[0] - 2 * half).abs().max()) > 1e-6 * max(1.0, float(one.abs().max())):
        raise Unreadable("its steps are not affine, so mean and deviation do not follow from the table")
    return float(one[0]), float((one[1:] - one[0]).norm())


def weak_error(found: tuple[float, float], data: Gaussian, end: Level) -> float:
    """Return the larger error of mean and standard deviation."""
    wanted = end.alpha * float(data.mean), math.sqrt(data.variance(end))
    gap = max(abs(f - w) for f, w in zip(found, wanted, strict=True))
    return gap if gap == gap else math.inf


@dataclass(frozen=True)
class Sampled:
    """Mean and standard deviation of drawn samples, with the standard error of each."""

    mean: float
    deviation: float
    mean_error: float
    deviation_error: float

    def sigmas(self, mean: float, deviation: float) -> float:
        """Return by how many standard errors the sample is off, the larger of the two."""
        return max(abs(self.mean - mean) / self.mean_error, abs(self.deviation - deviation) / self.deviation_error)


def sampled(bench: Bench, data: Gaussian, steps: int, *, count: int, seed: int, distilled: bool = False) -> Sampled:
    """Draw at least `count` numbers, through the scheduler's own `step` where the documented loop drives it."""
    schedule, generator = bench.schedule(steps), seeded(seed)
    side = max(2, math.ceil(math.sqrt(count / 16)))
    x = data.noised((16, 1, side, side), schedule.calls[0].level, generator)
    model = network(data, schedule.prediction, distilled=distilled)
    end = bench.run_steps(steps, model, x, generator=generator).double()
    size, deviation = end.numel(), float(end.std())
    return Sampled(float(end.mean()), deviation, deviation / math.sqrt(size), deviation / math.sqrt(2 * size))


def shares(bench: Bench, data: Mixture, steps: int, *, count: int, seed: int) -> tuple[float, float]:
    """Return the largest error of a component's share among `count` drawn samples, and its standard error."""
    schedule, generator = bench.schedule(steps), seeded(seed)
    x = data.noised((count, data.dimension, 1, 1), schedule.calls[0].level, generator)
    end = bench.run(steps, network(data, schedule.prediction), x, generator=generator).double()
    found = torch.bincount(data.component(end), minlength=len(data.weights)) / count
    return distance(found, data.shares), 0.5 / math.sqrt(count)
