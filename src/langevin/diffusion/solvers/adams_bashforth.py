"""Linear multistep sampling of the noise prediction: pseudo numerical methods, Liu et al. 2022 (2202.09778)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from ..grid import Grid
from ..process import Level
from ..rows import Row

# Adams-Bashforth weights of the present and the past predictions, newest first (eq. 12 and its lower orders).
WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def transfer(a: Level, b: Level) -> tuple[float, float]:
    """Return the coefficients of x and eps of the step a -> b: eq. 11, the exact step for a constant eps."""
    k = b.alpha / a.alpha
    return k, b.sigma - a.sigma * k


@dataclass(frozen=True)
class PseudoNumerical:
    """Adams-Bashforth of order 4 that starts with Runge-Kutta steps or with one corrected Euler step.

    Attributes:
        middle: the level half way between two, for the Runge-Kutta start; None starts with the corrected Euler step
            (PLMS), which asks the network twice at the second level.
    """

    middle: Callable[[Level, Level], Level] | None = None
    wants: Literal["eps"] = "eps"
    begins_anywhere: ClassVar[bool] = False

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        """Return the starting rows and then one row per level.

        A run that begins inside a starting step walks to that step's end by Euler steps; the orders rise from there.
        """
        size, steps = (4, 3) if self.middle else (2, 1)
        steps = min(steps, len(grid) - 2)
        whole = min(-(-begin // size), steps)
        start = [r for k in range(steps) for r in self.start(grid[k], grid[k + 1], known=max(k - whole, 0))]
        walk = [multistep(row.level, row.after, known=0) for row in start[begin : whole * size]]
        first = max(steps, begin - steps * (size - 1))
        ahead = enumerate(zip(grid[first:], grid[first + 1 :], strict=False), steps - whole)
        return (*walk, *start[whole * size :], *(multistep(a, b, known=known) for known, (a, b) in ahead))

    def start(self, a: Level, b: Level, *, known: int) -> tuple[Row, ...]:
        """Return the rows of one starting step; `known` predictions are remembered and the one at `a` joins them."""
        if self.middle is None:
            k, c = transfer(a, b)
            predict = Row(a, b, sample=k, outputs=(c,), save=True, keep=(0,))
            correct = Row(b, b, saved=k, outputs=(c / 2, c / 2), keep=(1,))
            return predict, correct
        return runge_kutta(a, self.middle(a, b), b, known=known)


@dataclass(frozen=True)
class AdamsBashforth:
    """Adams-Bashforth of order 4 for equal steps; the orders rise from 1 at the beginning of a run."""

    wants: Literal["eps"] = "eps"
    begins_anywhere: ClassVar[bool] = False

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        return tuple(multistep(a, b, known=known) for known, (a, b) in enumerate(pairwise(grid[begin:])))


def multistep(a: Level, b: Level, *, known: int) -> Row:
    """Return the Adams-Bashforth row of the step a -> b from the present and `known` past predictions (eq. 12).

    In pure noise (alpha = 0) eps says nothing about the data, so the first-order step takes both estimates.
    """
    if a.alpha == 0:
        return Row(a, b, outputs=(b.sigma,), data=b.alpha, keep=(0,))
    known = min(known, len(WEIGHTS) - 1)
    k, c = transfer(a, b)
    return Row(a, b, sample=k, outputs=tuple(c * w for w in WEIGHTS[known]), keep=tuple(range(min(known + 1, 3))))


def runge_kutta(a: Level, m: Level, b: Level, *, known: int) -> tuple[Row, ...]:
    """Return the four rows of the classical Runge-Kutta step a -> b with the middle level m (eq. 13)."""
    (k_half, c_half), (k, c) = transfer(a, m), transfer(a, b)
    past = range(1, known + 1)
    return (
        Row(a, m, sample=k_half, outputs=(c_half,), save=True, keep=(0, *past)),
        Row(m, m, saved=k_half, outputs=(c_half,), keep=(0, 1, *(p + 1 for p in past))),
        Row(m, b, saved=k, outputs=(c,), keep=(0, 1, 2, *(p + 2 for p in past))),
        Row(b, b, saved=k, outputs=(c / 6, c / 3, c / 3, c / 6), keep=(3, *(p + 3 for p in past))[:3]),
    )
