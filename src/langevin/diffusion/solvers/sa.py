"""SA-Solver, a stochastic Adams predictor-corrector: Xue et al. 2023 (2309.05019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..grid import Grid
from ..process import Time
from ..rows import Row
from .exponential import exact, exponential, trapezoid
from .predictor_corrector import corrected


def middle_noise(t: Time) -> float:
    """Full noise between timesteps 200 and 800 of 1000 and none outside (2309.05019, section 6)."""
    return 1.0 if 200 <= t <= 800 else 0.0


@dataclass(frozen=True)
class SASolver:
    """Stochastic Adams-Bashforth steps, corrected by Adams-Moulton steps that reuse their noise.

    Over data predictions, two of them are combined by the trapezoid rule, as in the authors' code.

    Attributes:
        predictor: number of predictions in a step, 1 to 4.
        corrector: number of predictions in its correction, the one at its end included; 0 corrects nothing.
        wants: what is integrated.
        tau: timestep -> strength of the noise of the step that begins there; 0 is the ODE, 1 the reversed process.
        lower_order_final: lower the orders towards the end.
    """

    predictor: int = 2
    corrector: int = 2
    wants: Literal["x0", "eps"] = "x0"
    tau: Callable[[Time], float] = middle_noise
    lower_order_final: bool = True

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        rule = trapezoid if self.wants == "x0" else exact

        def count(k: int, order: int, more: int) -> int:
            """Return how many predictions are used: at most `order`, those there are, those that are left."""
            left = len(grid) - 1 - k + more if self.lower_order_final else order
            return min(order, left, k - begin + 1 + more)

        def integrate(k: int, newest: int, size: int) -> tuple[float, tuple[float, ...], float]:
            points = [grid[newest - j] for j in range(size)]
            tau = float(self.tau(grid[k].t))
            return exponential(grid[k], grid[k + 1], points, wants=self.wants, tau=tau, rule=rule)

        def predict(k: int) -> tuple[float, tuple[float, ...], float]:
            return integrate(k, k, 1 if grid[k + 1].sigma == 0 else count(k, self.predictor, 0))

        def correct(k: int) -> tuple[float, ...]:
            size = count(k, self.corrector, 1)
            return integrate(k, k + 1, size)[1] if size and math.isfinite(grid[k].lam) else ()

        return corrected(grid, begin, predict=predict, correct=correct, stochastic=True)
