"""Linear multistep sampling in sigma / alpha: Adams-Bashforth for steps of unequal length.

In r = sigma / alpha the probability flow of x / alpha is d(x / alpha) = eps dr, so a step adds the integral of eps.
It is replaced by the integral of the polynomial through the last predictions (Karras et al. 2022, 2206.00364, eq. 1
with sigma(t) = t; the same method is rho-AB in Zhang & Chen 2022, 2204.13902).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...core.errors import InputError
from ..grid import Grid
from ..table import Row


def interpolation_weights(points: Sequence[float], end: float) -> tuple[float, ...]:
    """Return the integrals of the Lagrange polynomials of `points` from the first point to `end`.

    The polynomials are integrated exactly, in the unit of the interval.
    """
    length = end - points[0]
    if length == 0:
        return tuple(0.0 for _ in points)
    nodes = [(p - points[0]) / length for p in points]
    weights = []
    for k, node in enumerate(nodes):
        others = nodes[:k] + nodes[k + 1 :]
        basis = np.poly1d(others, r=True) / np.prod([node - other for other in others])
        weights.append(length * float(basis.integ()(1.0)))
    return tuple(weights)


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
        weights = interpolation_weights([grid[j].ratio for j in range(k, k - count, -1)], b.ratio)
        outputs = tuple(b.alpha * w for w in weights)
        return Row(a, b, sample=b.alpha / a.alpha, outputs=outputs, keep=tuple(range(min(count, self.order - 1))))
