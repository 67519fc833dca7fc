"""Improved pseudo numerical methods: Liu et al. 2022 (2202.09778) without the Runge-Kutta start."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.config import register_to_config
from ..core.errors import InputError
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.prediction import Prediction
from ..diffusion.process import Level, Time, angular
from ..diffusion.solvers import AdamsBashforth
from .base import SchedulerMixin
from .trained import GridNoising


class IPNDMScheduler(SchedulerMixin):
    """Adams-Bashforth of order up to 4 for v-predictions; timesteps are angles in quarter turns, from 1 down.

    `trained_betas` and `sigmas` are noise levels sigma in [0, 1] themselves, descending, the end of the run included.
    """

    whole_timesteps = False
    tuple_holds_data = False
    _compatibles = ()
    add_noise = GridNoising.add_noise

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, trained_betas: Sequence[float] | None = None) -> None:
        self._setup()

    def _solver(self) -> AdamsBashforth:
        return AdamsBashforth()

    def _prediction(self) -> Prediction:
        return Prediction("v_prediction")

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None
    ) -> Grid:
        own = self.config.trained_betas if sigmas is None else sigmas
        if timesteps is not None:
            times = grids.check_descending("timesteps", timesteps, low=0, high=1)
            levels = [*(math.sin(t * math.pi / 2) for t in times), 0.0]
        elif own is not None:
            levels = grids.check_descending("trained_betas" if sigmas is None else "sigmas", own, low=0, high=1)
        else:
            grids.check_count(len(self) if count is None else count)
            levels = grids.squared_sine((len(self) if count is None else count) + 1).tolist()
        if count not in (None, len(levels) - 1):
            raise InputError(f"num_inference_steps is {count}, but trained_betas name {len(levels) - 1} steps.")
        if len(levels) < 2 or not levels[-2] > 0:
            raise InputError("A run needs a noise level above 0 to start from and another one to end at.")
        return tuple(map(angular, levels))

    def _sigma(self, level: Level) -> float:
        return level.sigma
