"""Linear multistep sampling in sigma / alpha: Adams-Bashforth for steps of unequal length.

In r = sigma / alpha the probability flow of x / alpha is d(x / alpha) = eps dr, so a step adds the integral of eps.
It is replaced by the integral of the polynomial through the last predictions (Karras et al. 2022, 2206.00364, eq. 1
with sigma(t) = t; the same method is rho-AB in Zhang & Chen 2022, 2204.13902).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...core.errors import InputError
from ..grid import Grid
from ..rows import Row
from .exponential import weights


def interpolation_weights(points: Sequence[float], end: float) -> tuple[float, ...]:
    """Return the integrals of the Lagrange polynomials of `points` from the first point to `end`.

    They give the monomials their moments, 1 / (k + 1) in the unit of the interval.
    """
    length = end - points[0]
    if length == 0:
        return tuple(0.0 for _ in points)
    nodes = [(p - points[0]) / length for p in points]
    return tuple(length * w for w in weights(nodes, [1 / (k + 1) for k in range(len(nodes))]))


@dataclass(frozen=True)
class LinearMultistep:
    """The multistep method of up to `order` predictions; the orders rise from 1 at the beginning of a run."""

    order: int = 4
    wants: Literal["eps"] = "eps"

    def __post_init__(self) -> None:
        if self.order < 1:
            raise InputError(f"order is {self.order}; it must be at least 1, and 4 is usual.")

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        return tuple(self.row(grid, k, min(self.order, k - begin + 1)) for k in range(begin, len(grid) - 1))

    def row(self, grid: Grid, k: int, count: int) -> Row:
        """Return the row of step k from the predictions at the last `count` levels."""
        a, b = grid[k], grid[k + 1]
        integrals = interpolation_weights([grid[j].ratio for j in range(k, k - count, -1)], b.ratio)
        outputs = tuple(b.alpha * w for w in integrals)
        return Row(a, b, sample=b.alpha / a.alpha, outputs=outputs, keep=tuple(range(min(count, self.order - 1))))
