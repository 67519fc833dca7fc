"""Schedulers in the variance-exploding view: Karras et al. 2022 (2206.00364)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.process import Time
from .trained import GridNoising


class ExplodingScheduler(GridNoising):
    """Base of schedulers whose samples live at alpha = 1, x = x_0 + sigma * eps."""

    scales_input = 1.0
    whole_timesteps = False
    terminal_alpha_bar = 2.0**-24

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        return times.tolist()

    def _sigma_range(self, count: int) -> tuple[float, float]:
        """The configured ends, or else the levels of the first and the last timestep of the spacing."""
        times = self._spaced(count)
        high, low = self._own("sigma_max"), self._own("sigma_min")
        return (
            self.process.ratio(times[0]) if high is None else high,
            self.process.ratio(times[-1]) if low is None else low,
        )

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None
    ) -> Grid:
        return grids.exploding(super()._grid(count, timesteps, sigmas))

    def _init_sigma(self, grid: Grid) -> float:
        """From the end of the table a run starts with noise alone, elsewhere with data of unit variance and noise."""
        first = grid[0]
        return first.norm if self.config.timestep_spacing == "leading" else first.sigma
