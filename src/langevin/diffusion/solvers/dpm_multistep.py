"""DPM-Solver and DPM-Solver++, multistep, orders 1 to 3: Lu et al. 2022 (2206.00927) and 2022 (2211.01095)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..grid import Grid
from ..rows import Row
from .exponential import Rule, exact, exponential, midpoint

Algorithm = Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]
ALGORITHMS: tuple[Algorithm, ...] = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def halved_third(values: list[float], z: float) -> list[float]:
    """Halve the second moment of three predictions, see `DPMMultistep.exact_third`."""
    return [*values[:2], values[2] / 2] if len(values) == 3 else values


@dataclass(frozen=True)
class DPMMultistep:
    """The multistep solver.

    Of order p it integrates the polynomial through the last p predictions. Of order 2 with `midpoint` over data this is
    algorithm 2 of 2211.01095: with h the length of the step and r that of the step before it in units of h,

        x' = sigma' / sigma * x + alpha' * (1 - e^-h) * ((1 + 1 / (2 r)) * m_0 - 1 / (2 r) * m_1).

    With algorithm "dpmsolver", without
    `midpoint` and with `exact_third` it is DEIS in log rho = -lambda: Zhang & Chen 2022 (2204.13902), section 3.3.

    Attributes:
        order: 1, 2 or 3.
        algorithm: "dpmsolver" predicts eps, "dpmsolver++" x_0; "sde-" solves the reverse SDE.
        midpoint: the second-order variant; otherwise "heun". Third order always integrates exactly.
        lower_order_final: lower the order of the last steps of runs of fewer than 15.
        euler_at_final: make the last step of first order.
        exact_third: weigh the second derivative of third order fully. The published formula, which all implementations
            share, gives the second divided difference half of its integral (it is half a second derivative already),
            and converges with order 2 and a smaller constant; the full weight converges with order 3.
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
        a, b, stochastic = grid[k], grid[k + 1], self.algorithm.startswith("sde")
        rule: Rule = midpoint if self.midpoint and order == 2 else exact if self.exact_third else halved_third
        points = [grid[j] for j in range(k, k - order, -1)]
        sample, outputs, noise = exponential(a, b, points, wants=self.wants, tau=float(stochastic), rule=rule)
        keep = tuple(range(min(self.order - 1, order)))
        return Row(a, b, sample=sample, outputs=outputs, noise=noise if stochastic else None, keep=keep)
