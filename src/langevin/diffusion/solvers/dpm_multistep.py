"""DPM-Solver and DPM-Solver++, multistep, orders 1 to 3: Lu et al. 2022 (2206.00927) and 2022 (2211.01095).

In lambda = log(alpha / sigma) the diffusion ODE is linear plus an integral of the prediction under an exponential
weight. The prediction is replaced by its Taylor polynomial D_0 + D_1 + D_2 from divided differences. The integrals are

    phi_1(z) = 1 - e^-z,    phi_2(z) = 1 - phi_1(z) / z,    phi_3(z) = 1/2 - (z - phi_1(z)) / z^2,

with z = h for data prediction, 2h for its SDE, and -h for noise prediction, where h = lambda_b - lambda_a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..grid import Grid
from ..table import Row

Algorithm = Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]
ALGORITHMS: tuple[Algorithm, ...] = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def integrals(z: float, *, midpoint: bool) -> tuple[float, float, float]:
    """Return phi_1, phi_2 and phi_3 at z; `midpoint` replaces phi_2 by phi_1 / 2, which is as accurate in order."""
    one = -math.expm1(-z)
    if z == 0:
        return 0.0, 0.0, 0.0
    if math.isinf(z):
        return one, one / 2 if midpoint else 1.0, 0.5
    return one, one / 2 if midpoint else 1 - one / z, 0.5 - (z - one) / z**2


def differences(order: int, h: float, past: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Return D_0, D_1, D_2 as weights of the predictions, newest first (2211.01095, eq. 9 and appendix B.3).

    `past` holds the preceding steps in lambda, newest first.
    """
    d0, d1, d2 = [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    if order >= 2:
        r0 = past[0] / h
        newer = (1 / r0, -1 / r0, 0.0)
        d1 = list(newer)
        if order == 3:
            r1 = past[1] / h
            older = (0.0, 1 / r1, -1 / r1)
            d2 = [(n - o) / (r0 + r1) for n, o in zip(newer, older, strict=True)]
            d1 = [n + r0 * d for n, d in zip(newer, d2, strict=True)]
    return tuple(tuple(d[:order]) for d in (d0, d1, d2))


@dataclass(frozen=True)
class DPMMultistep:
    """The multistep solver.

    Attributes:
        order: 1, 2 or 3.
        algorithm: "dpmsolver" predicts eps, "dpmsolver++" x_0; "sde-" solves the reverse SDE.
        midpoint: the second-order variant; otherwise "heun". Third order always integrates exactly.
        lower_order_final: lower the order of the last steps of runs of fewer than 15.
        euler_at_final: make the last step of first order.
        exact_third: weigh the second derivative of third order fully. The published formula, which all implementations
            share, gives D_2 half of its integral (D_2 is a divided difference, half a second derivative), and converges
            with order 2 and a smaller constant; the full weight converges with order 3.
    """

    order: int = 2
    algorithm: Algorithm = "dpmsolver++"
    midpoint: bool = True
    lower_order_final: bool = True
    euler_at_final: bool = False
    exact_third: bool = False

    @property
    def wants(self) -> Literal["x0", "eps"]:
        return "x0" if self.algorithm.endswith("++") else "eps"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        return tuple(self.row(grid, k, min(self.allowed(grid, k), k - begin + 1)) for k in range(begin, len(grid) - 1))

    def allowed(self, grid: Grid, k: int) -> int:
        """Return the highest order for step k; the step to sigma = 0 has no finite lambda and is of order 1."""
        count = len(grid) - 1
        if k == count - 1 and (self.euler_at_final or grid[-1].sigma == 0):
            return 1
        if self.lower_order_final and count < 15:
            return min(self.order, count - k)
        return self.order

    def row(self, grid: Grid, k: int, order: int) -> Row:
        """Return the row of step k at the given order."""
        a, b = grid[k], grid[k + 1]
        h = b.lam - a.lam
        order = order if h > 0 else 1
        past = tuple(grid[j + 1].lam - grid[j].lam for j in range(k - 1, k - order, -1))
        noise = None
        if self.algorithm == "dpmsolver++":
            sample, scale, z = b.sigma / a.sigma, b.alpha, h
        elif self.algorithm == "sde-dpmsolver++":
            sample, scale, z = b.sigma / a.sigma * math.exp(-h), b.alpha, 2 * h
            noise = b.sigma * math.sqrt(max(-math.expm1(-2 * h), 0.0))
        elif self.algorithm == "dpmsolver":
            sample, scale, z = b.alpha / a.alpha, b.sigma, -h
        else:
            sample, scale, z = b.alpha / a.alpha, 2 * b.sigma, -h
            noise = b.sigma * math.sqrt(max(math.expm1(2 * h), 0.0))
        phis = integrals(z, midpoint=self.midpoint and order == 2)
        if self.exact_third:
            phis = (phis[0], phis[1], 2 * phis[2])
        parts = differences(order, h, past)
        outputs = tuple(scale * sum(p * d[j] for p, d in zip(phis, parts, strict=True)) for j in range(order))
        return Row(a, b, sample=sample, outputs=outputs, noise=noise, keep=tuple(range(min(self.order - 1, order))))
