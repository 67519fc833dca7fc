"""Solvers around another solver that put noise back in between: restart and churn.

A jump up is linear, so it is part of the last row before it: x' is scaled to the upper level and noise is added, in one
draw with what that row draws anyway. Nothing from before a jump is remembered after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ...core.errors import ConfigError, InputError
from ..grid import Grid, karras
from ..levels import interpolated
from ..process import Level
from ..rows import Row
from ..table import Solver
from .climb import climb, rise
from .first_order import Churn

Place = Callable[[Level], Level]
Leg = tuple[Grid, Level | None, Level | None]
"""The levels of a descent, the one at which it is broken off, and the one to which the sample is then raised."""


def raised(row: Row, high: Level, factor: float = 1.0) -> Row:
    """Return `row` followed by noise up to `high`, whose standard deviation is scaled by `factor`."""
    if row.spread is not None or row.snr is not None:
        raise ConfigError("Restart and churn need rows with known noise: no learned variance, no Langevin corrections.")
    k, fresh = rise(row.after, high)
    noise = math.hypot(k * (row.noise or 0.0), factor * fresh)
    return replace(climb(row, high), noise=noise, keep=())


def travel(inner: Solver, legs: Iterable[Leg], begin: int, factor: float = 1.0) -> tuple[Row, ...]:
    """Return the rows of `inner` along the legs, from network call `begin` on."""
    rows: list[Row] = []
    for grid, stop, high in legs:
        calls = inner.rows(grid)
        if stop is not None:
            calls = calls[: 1 + max(k for k, row in enumerate(calls) if row.after == stop)]
        count = len(calls)
        if begin >= count:
            begin -= count
            continue
        if begin:
            calls, begin = inner.rows(grid, begin)[: count - begin], 0
        rows += calls if high is None else (*calls[:-1], raised(calls[-1], high, factor))
    return tuple(rows)


@dataclass(frozen=True)
class Restart:
    """Restart sampling: Xu et al. 2023 (2306.14878), algorithm 1.

    When the run has come down to the level of its grid nearest to `low`, it jumps up to `high` and comes down again, in
    `steps` steps spaced as by `karras`; `times` times over. An interval costs `times` * `steps` steps of `inner`.
    A run that begins at or below that level makes no jump.

    Attributes:
        inner: the solver that steps down.
        intervals: (low, high, times, steps), low and high as noise levels sigma / alpha.
        place: turns a level whose timestep was interpolated in the grid into one with the process's own timestep; a
            scheduler that uses this solver sets it.
    """

    inner: Solver
    intervals: tuple[tuple[float, float, int, int], ...]
    place: Place | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for interval in self.intervals:
            low, high, times, steps = interval if len(interval) == 4 else (0.0, 0.0, 0, 0)
            if not (0 < low < high and min(times, steps) >= 1 and int(times) == times and int(steps) == steps):
                raise ConfigError(
                    f"{interval!r} is no interval of Restart; give (low, high, times, steps) with 0 < low < high and "
                    "whole numbers of at least 1, such as (0.1, 0.3, 4, 4)."
                )

    @property
    def wants(self) -> Literal["x0", "eps"]:
        return self.inner.wants

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        return travel(self.inner, self.legs(grid), begin)

    def legs(self, grid: Grid) -> list[Leg]:
        """Return the descents of a run over `grid`."""
        legs: list[Leg] = []
        path = grid
        for low, high, times, steps in sorted(self.intervals, key=lambda interval: -interval[0]):
            stop = nearest_level(grid, low)
            if not stop.ratio < high <= grid[0].ratio:
                raise InputError(
                    f"The interval {low:g} ... {high:g} of Restart does not fit between the noise levels of this run: "
                    f"it would jump from {stop.ratio:g}, and the run starts at {grid[0].ratio:g}. "
                    "Take more steps or another interval."
                )
            ladder = [interpolated(grid, float(ratio)) for ratio in karras(steps + 1, high, stop.ratio)[:-1]]
            ladder = list(map(self.place, ladder)) if self.place else ladder
            for _ in range(times):
                legs.append((path, stop, ladder[0]))
                path = (*ladder, *grid[grid.index(stop) :])
        return [*legs, (path, None, None)]


@dataclass(frozen=True)
class Churned:
    """Noise raised before each step of a solver: Karras et al. 2022 (2206.00364), algorithm 2.

    Unlike `FirstOrder(churn=...)`, which reads the output of the level below, the network is asked at the raised level.
    `inner` may be any solver, but one that remembers predictions starts anew at each raised step, so this is for
    solvers of one step: first order, Heun and the like. The first level, which is noise already, is not raised.

    Attributes:
        inner: the solver that steps down.
        churn: the amounts; its bounds are noise levels sigma / alpha.
        place: as for `Restart`.
    """

    inner: Solver
    churn: Churn
    place: Place | None = field(default=None, repr=False, compare=False)

    @property
    def wants(self) -> Literal["x0", "eps"]:
        return self.inner.wants

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        return travel(self.inner, self.legs(grid), begin, self.churn.noise)

    def legs(self, grid: Grid) -> list[Leg]:
        """Return the descents of a run over `grid`: each goes to the next level that is raised."""
        if grid[0].ratio <= grid[-1].ratio:
            raise InputError("Churn goes with runs from noise to data, but the levels of this grid rise.")
        legs: list[Leg] = []
        start, first, count = grid[0], 0, len(grid) - 1
        for k in range(1, count):
            if not (gamma := self.churn.gamma(grid[k].exploding(), count, k)):
                continue
            high = interpolated(grid, grid[k].ratio * (1 + gamma))
            high = self.place(high) if self.place else high
            legs.append(((start, *grid[first + 1 : k + 2]), grid[k], high))
            start, first = high, k
        return [*legs, ((start, *grid[first + 1 :]), None, None)]


def nearest_level(grid: Grid, ratio: float) -> Level:
    """Return the level after the first whose sigma / alpha is nearest to `ratio` in the logarithm."""
    inside = [level for level in grid[1:] if level.sigma > 0]
    if not inside:
        raise InputError("A run of one step has no level to restart from; take more steps.")
    return min(inside, key=lambda level: abs(math.log(level.ratio / ratio)))
