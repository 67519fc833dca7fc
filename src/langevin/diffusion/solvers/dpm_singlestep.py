"""DPM-Solver and DPM-Solver++, singlestep, orders 1 to 3: Lu et al. 2022 (2206.00927), algorithms 1 and 2.

A step of order p asks the network p times, at the level it starts from and at levels inside, and uses no prediction of
another step. Each call also moves the sample, by a step of lower order from the same start to the next level.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

from ..grid import Grid
from ..rows import Row
from .dpm_multistep import Algorithm
from .exponential import exact, exponential, midpoint


def places(count: int, order: int, *, lower_order_final: bool, clean: bool) -> tuple[int, ...]:
    """Return for each of `count` calls which call of its step it is, from 1.

    Args:
        lower_order_final: end with steps of lower order, so that the last call is a step of its own where that fits.
        clean: the run ends at sigma = 0, where the last call must be a step of order 1.
    """
    whole, over = divmod(count, order)
    if over or not (clean or lower_order_final) or order == 1:
        sizes = [order] * whole + [over] * bool(over)
    else:
        sizes = [order] * (whole - 1) + [order - 1, 1]
    found = list(chain.from_iterable(range(1, size + 1) for size in sizes))
    return (*found[:-1], 1) if clean else tuple(found)


@dataclass(frozen=True)
class DPMSinglestep:
    """The singlestep solver over the levels of the grid.

    Attributes:
        order: network calls per step, 1, 2 or 3.
        algorithm: as for `DPMMultistep`.
        midpoint: second order by the midpoint rule, and third order as in algorithm 2, which leaves out the second of
            the three predictions; otherwise the polynomial through all of them is integrated exactly.
        lower_order_final: end with steps of lower order. This is also done where the calls do not make whole steps and
            where the run ends at sigma = 0.
    """

    order: int = 2
    algorithm: Algorithm = "dpmsolver++"
    midpoint: bool = True
    lower_order_final: bool = False

    @property
    def wants(self) -> Literal["x0", "eps"]:
        return "x0" if self.algorithm.endswith("++") else "eps"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        """Return one row per level; a run that begins inside a step makes the rest of it a step of lower order."""
        order = places(len(grid) - 1, self.order, lower_order_final=self.lower_order_final, clean=grid[-1].sigma == 0)
        return tuple(self.row(grid, k, min(order[k], k - begin + 1)) for k in range(begin, len(grid) - 1))

    def row(self, grid: Grid, k: int, call: int) -> Row:
        """Return the row of call number `call` of its step, at level k."""
        start, stochastic = grid[k - call + 1], self.algorithm.startswith("sde")
        points = [grid[k - j] for j in range(call)]
        between: tuple[float, ...] = ()
        if self.midpoint and call == 3:
            points, between = [points[0], points[2]], (0.0,)
        sample, (newest, *older), noise = exponential(
            start,
            grid[k + 1],
            points,
            wants=self.wants,
            tau=float(stochastic),
            rule=midpoint if self.midpoint and call == 2 else exact,
        )
        return Row(
            grid[k],
            grid[k + 1],
            sample=sample if call == 1 else 0.0,
            saved=0.0 if call == 1 else sample,
            outputs=(newest, *between, *older),
            noise=noise if stochastic else None,
            keep=tuple(range(min(self.order - 1, call))),
            save=call == 1,
        )
