"""Few-step sampling with consistency models: go to the data, and from there to a noisier level again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...core.errors import InputError
from ..grid import Grid
from ..process import Level, Time
from ..rows import Row
from .climb import climb
from .first_order import FirstOrder


@dataclass(frozen=True)
class Renoising:
    """Go to the data, then add noise up to the next level: Song et al. 2023 (2303.01469), algorithm 1.

    Attributes:
        low: noise that the network's estimate of the data still holds.
        scale: factor of the fresh noise.
        draw_last: whether the last of several steps draws noise, none of which it adds.
    """

    low: float = 0.0
    scale: float = 1.0
    draw_last: bool = False
    wants: Literal["x0"] = "x0"
    begins_anywhere: ClassVar[bool] = False

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        last = len(grid) - 2
        return tuple(self.row(grid[k], grid[k + 1], k, last) for k in range(begin, last + 1))

    def row(self, a: Level, b: Level, k: int, last: int) -> Row:
        """Return the row of the step a -> b, number `k` of 0 ... `last`."""
        noise: float | None = self.scale * math.sqrt(max(b.sigma**2 - self.low**2, 0.0))
        if k == last:
            noise = 0.0 if self.draw_last and last else None
        return Row(a, b, outputs=(b.alpha,), noise=noise)


@dataclass(frozen=True)
class Trajectory:
    """Step past the next level towards the data, and add noise up to it: Zheng et al. 2024 (2402.19159), algorithm 2.

    Attributes:
        level: the level of a time.
        gamma: how far past: from the next time t the step goes to (1 - gamma) * t, rounded down. 0 draws no noise, 1
            goes to the least noisy level each time.
    """

    level: Callable[[Time], Level]
    gamma: float = 0.3
    wants: Literal["x0"] = "x0"
    begins_anywhere: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise InputError(f"eta (the paper's gamma) is {self.gamma}; it must be in [0, 1].")

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        last, step = len(grid) - 2, FirstOrder(split=True)
        rows = []
        for k in range(begin, last + 1):
            row = step.row(grid[k], self.past(grid[k + 1]), last + 1)
            rows.append(climb(row, grid[k + 1]) if self.gamma and k < last else row)
        return tuple(rows)

    def past(self, level: Level) -> Level:
        """Return the level from which noise leads up to `level`; the end of a run is its own."""
        past = math.floor((1.0 - self.gamma) * level.t + 1e-6)
        return self.level(past) if self.gamma and level.t > 0 else level
