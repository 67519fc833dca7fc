"""UniPC, a unified predictor-corrector: Zhao et al. 2023 (2302.04867)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...core.errors import ConfigError
from ..grid import Grid
from ..rows import Row
from ..table import Solver
from .exponential import exponential, midpoint, trapezoid
from .predictor_corrector import corrected

VARIANTS = {"bh1": trapezoid, "bh2": midpoint}
"""B_1(h) = h and B_2(h) = e^h - 1. They matter where two predictions are combined; beyond that B(h) cancels."""


@dataclass(frozen=True)
class UniPC:
    """The multistep UniPC-p: UniP-p, and UniC-p, which has one order more, at the next network call.

    Attributes:
        order: p of the predictor.
        wants: what is integrated.
        variant: a name in `VARIANTS`.
        lower_order_final: lower the order towards the end.
        uncorrected: steps whose result is not corrected.
        predictor: another deterministic solver with one row per step that predicts instead of UniP.
    """

    order: int = 2
    wants: Literal["x0", "eps"] = "x0"
    variant: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    uncorrected: tuple[int, ...] = ()
    predictor: Solver | None = None

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        def allowed(k: int) -> int:
            highest = min(self.order, len(grid) - 1 - k) if self.lower_order_final else self.order
            return 1 if grid[k + 1].sigma == 0 else min(highest, k - begin + 1)

        def integrate(k: int, newest: int, count: int) -> tuple[float, tuple[float, ...], float]:
            points = [grid[newest - j] for j in range(count)]
            return exponential(grid[k], grid[k + 1], points, wants=self.wants, rule=VARIANTS[self.variant])

        def correct(k: int) -> tuple[float, ...]:
            if k in self.uncorrected or not math.isfinite(grid[k].lam):
                return ()
            return integrate(k, k + 1, allowed(k) + 1)[1]

        if self.predictor is None:
            return corrected(grid, begin, predict=lambda k: integrate(k, k, allowed(k)), correct=correct)
        predicted = self.foreign(grid, begin)
        return corrected(grid, begin, predict=lambda k: predicted[k - begin], correct=correct)

    def foreign(self, grid: Grid, begin: int) -> list[tuple[float, tuple[float, ...], float]]:
        """Return the coefficients of x and of the predictions of each step of the other predictor."""
        rows = self.predictor.rows(grid, begin)  # type: ignore[union-attr]
        found = []
        for k, row in enumerate(rows, begin):
            # a direction d * eps with eps = (x - alpha * x_0) / sigma is part of x and of the present prediction
            share = row.direction / row.level.sigma if self.wants == "x0" else 0.0
            outputs = (row.outputs[0] - share * row.level.alpha, *row.outputs[1:])
            found.append((row.sample + share, outputs, 0.0))
            drawn = row.noise is not None or row.lift is not None or row.saved
            if drawn or self.predictor.wants != self.wants or len(rows) != len(grid) - 1 - begin:  # type: ignore[union-attr]
                raise ConfigError(
                    f"{type(self.predictor).__name__} cannot predict for UniPC over {self.wants}: it must be "
                    "deterministic, ask the network once per step and integrate the same prediction "
                    "(`predict_x0` chooses between data and noise)."
                )
            plain = exponential(grid[k], grid[k + 1], [grid[k]], wants=self.wants)[0]
            if not math.isclose(found[-1][0], plain, rel_tol=1e-9, abs_tol=1e-12):
                raise ConfigError(f"{type(self.predictor).__name__} is not exact for a constant prediction.")
        return found
