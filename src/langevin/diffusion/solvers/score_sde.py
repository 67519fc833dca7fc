"""Predictors of score-based models: Song et al. 2021 (2011.13456). They discretise the reverse SDE directly.

Neither solves its linear part exactly, so they need hundreds of steps; the others of this package need tens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..grid import Grid
from ..process import Level
from ..rows import Row
from ..score_sde import PreservingSDE


@dataclass(frozen=True)
class ReverseDiffusion:
    """Reverse diffusion sampling on exploding levels with Langevin correctors: algorithm 4.

    Its mean is that of ancestral sampling; its noise has the variance that the forward step adds. The last step adds
    none.

    Attributes:
        correct_steps: corrections at each level, before the step down.
        snr: ratio of the norms of score and noise in a correction.
    """

    correct_steps: int = 0
    snr: float = 0.15
    wants: Literal["eps"] = "eps"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        rows: list[Row] = []
        for k in range(len(grid) - 1):
            rows += [Row(grid[k], grid[k], sample=1.0, noise=1.0, snr=self.snr)] * self.correct_steps
            rows.append(self.row(grid[k], grid[k + 1], last=k == len(grid) - 2))
        return tuple(rows[begin:])

    def row(self, a: Level, b: Level, *, last: bool) -> Row:
        """Return the row of the step a -> b."""
        added = a.sigma**2 - b.sigma**2
        return Row(a, b, sample=1.0, outputs=(-added / a.sigma,), noise=0.0 if last else math.sqrt(added))


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama steps of length 1 / n on preserving levels: appendix E. The last step adds no noise.

    Attributes:
        process: whose rate of noise is followed.
    """

    process: PreservingSDE
    wants: Literal["eps"] = "eps"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        count = len(grid) - 1
        return tuple(self.row(grid[k], grid[k + 1], 1 / count, last=k == count - 1) for k in range(begin, count))

    def row(self, a: Level, b: Level, length: float, *, last: bool) -> Row:
        """Return the row of the step a -> b, taken to be of the given length in time."""
        added = self.process.beta(a.t) * length
        noise = 0.0 if last else math.sqrt(added)
        return Row(a, b, sample=1.0 + added / 2, outputs=(-added / a.sigma,), noise=noise)
