"""Multistep predictor and corrector in lambda at one network call per step: UniPC and SA-Solver.

The predictor moves x from level a to level b with what is known at a. Once the network was asked at b, the corrector
repeats the step with that prediction too. Both have the same coefficient of x and the same noise, so that

    x_corrected = x_predicted + sum_j (corrector_j - predictor_j) * m_j,

which is linear in the predictions alone: one row holds the correction at its level and the prediction of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..grid import Grid
from ..rows import Row


def added(long: tuple[float, ...], short: tuple[float, ...], factor: float) -> tuple[float, ...]:
    """Return long + factor * short, the missing entries of either being 0."""
    size = max(len(long), len(short))
    pairs = zip(long + (0.0,) * (size - len(long)), short + (0.0,) * (size - len(short)), strict=True)
    return tuple(x + factor * y for x, y in pairs)


def corrected(
    grid: Grid,
    begin: int,
    *,
    predict: Callable[[int], tuple[float, tuple[float, ...], float]],
    correct: Callable[[int], tuple[float, ...]],
    stochastic: bool = False,
) -> tuple[Row, ...]:
    """Return the rows of a run from step `begin` on.

    Args:
        predict: step -> the predictor's coefficients of x, of the predictions (newest first) and of noise.
        correct: step -> the corrector's coefficients of the predictions, that at the step's end first; empty for none.
        stochastic: draw noise in every row.
    """
    rows: list[Row] = []
    before: tuple[float, ...] = ()
    for k in range(begin, len(grid) - 1):
        sample, predictor, noise = predict(k)
        outputs = predictor
        if rows and sample and (corrector := correct(k - 1)):
            outputs = added(outputs, added(corrector, (0.0, *before), -1.0), sample)
        rows.append(Row(grid[k], grid[k + 1], sample=sample, outputs=outputs, noise=noise if stochastic else None))
        before = predictor
    return tuple(remembering(rows))


def remembering(rows: list[Row]) -> list[Row]:
    """Return the rows with `keep` set to what later rows use."""
    found: list[Row] = []
    needed = 0
    for row in reversed(rows):
        found.append(replace(row, keep=tuple(range(needed))))
        needed = max(needed - 1, len(row.outputs) - 1, 0)
    return found[::-1]
