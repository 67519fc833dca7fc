"""Runs that go back up: noise is added to a sample on its way, and the steps below are made again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from ...core.errors import InputError
from ..grid import Grid
from ..process import Level
from ..rows import Row
from .first_order import FirstOrder


def rise(low: Level, high: Level) -> tuple[float, float]:
    """Return the coefficients of x and of fresh noise that take a sample from `low` up to the noisier level `high`."""
    k = high.alpha / low.alpha
    return k, math.sqrt(max(high.sigma**2 - (k * low.sigma) ** 2, 0.0))


def climb(row: Row, high: Level) -> Row:
    """Return `row` followed by noise up to `high`, as one row with one draw."""
    k, fresh = rise(row.after, high)
    return replace(
        row,
        after=high,
        sample=k * row.sample,
        saved=k * row.saved,
        outputs=tuple(k * c for c in row.outputs),
        direction=k * row.direction,
        noise=math.hypot(k * (row.noise or 0.0), fresh),
    )


def kept(row: Row) -> float:
    """Return the factor of x in the noise up to `row.after` on preserving levels, where all noise of `row` is of it.

    There `rise` gives factors whose squares add up to 1.
    """
    return math.sqrt(1.0 - (row.noise or 0.0) ** 2)


@dataclass(frozen=True)
class Resampling:
    """First-order steps over a grid that may climb: Lugmayr et al. 2022 (2201.09865), algorithm 1.

    The levels of the grid, put in order, are a ladder. Every step goes one rung down; where the grid continues higher,
    fresh noise follows, up to there.

    Attributes:
        base: makes the step down.
        resample: whether the noise follows; without it the rows are the steps down alone.
    """

    base: FirstOrder = field(default_factory=lambda: FirstOrder(split=True))
    resample: bool = True
    wants: Literal["x0"] = "x0"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        rungs = sorted(set(grid), key=lambda level: level.ratio)
        below = {high: low for low, high in pairwise(rungs)}
        rows = (self.base.row(a, below[a], len(grid) - 1) for a in grid[begin:-1])
        if not self.resample:
            return tuple(rows)
        return tuple(
            climb(row, b) if b.ratio > row.after.ratio else row for row, b in zip(rows, grid[begin + 1 :], strict=True)
        )


def jumps(count: int, length: int, samples: int) -> list[int]:
    """Return the walk over positions `count` - 1 ... 0 that comes back (2201.09865, section 4.2).

    From each multiple of `length` below `count` - `length` it goes `length` positions up and down again,
    `samples` - 1 times. An entry above the one before it adds noise, any other is a step of the network.
    """
    if length < 1 or samples < 1:
        raise InputError(f"jump_length is {length} and jump_n_sample is {samples}; both must be at least 1.")
    walk = []
    for position in range(count - 1, -1, -1):
        walk.append(position)
        if position % length == 0 and position < count - length:
            top = position + length
            walk += [*range(position + 1, top + 1), *range(top - 1, position - 1, -1)] * (samples - 1)
    return walk


def climbing(grid: Grid, walk: Sequence[int]) -> Grid:
    """Return the levels of `grid` at which a walk asks the network, in its order, and the end; 0 is the step to it."""
    calls = [walk[0], *(after for before, after in pairwise(walk) if after < before)]
    return (*(grid[-2 - k] for k in calls), grid[-1])
