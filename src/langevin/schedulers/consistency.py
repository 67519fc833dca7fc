"""Multistep consistency sampling in pixel space: Song et al. 2023 (2303.01469), algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..core.config import register_to_config
from ..core.errors import ConfigError, InputError
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.prediction import Preconditioning, Prediction
from ..diffusion.process import Level, Time
from ..diffusion.solvers import Renoising
from .base import DrawingScheduler
from .trained import GridNoising


class CMStochasticIterativeScheduler(DrawingScheduler):
    """To the data, and back up with fresh noise, over Karras levels; the network is told 250 * log(sigma)."""

    _compatibles = ()
    whole_timesteps = False
    tuple_holds_data = False
    add_noise = GridNoising.add_noise

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0,
        sigma_data: float = 0.5, s_noise: float = 1.0, rho: float = 7.0, clip_denoised: bool = True,
    ) -> None:  # fmt: skip
        if not 0 < sigma_min < sigma_max:
            raise ConfigError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}; need 0 < sigma_min < sigma_max.")
        self.scales_input = sigma_data
        self._setup()

    def _solver(self) -> Renoising:
        return Renoising(low=self.config.sigma_min, scale=self.config.s_noise, draw_last=True)

    def _prediction(self) -> Prediction:
        scaling = Preconditioning(self.config.sigma_data, low=self.config.sigma_min)
        return Prediction(scaling=scaling, clip=1.0 if self.config.clip_denoised else None)

    def _init_sigma(self, grid: Grid) -> float:
        return self.config.sigma_max

    def _level(self, sigma: float) -> Level:
        return Level(250.0 * math.log(sigma), 1.0, sigma)

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None
    ) -> Grid:
        """The levels are those of the training table that leading spacing chooses, the noisiest first.

        Own timesteps are positions in that table counted from its noisy end, in descending order.
        """
        if sigmas is not None:
            return tuple(map(self._level, grids.check_descending("sigmas", sigmas, low=self.config.sigma_min)))
        total = len(self)
        if timesteps is not None:
            times = grids.check_descending("timesteps", timesteps, low=0, high=total - 1)
            if any(not t.is_integer() for t in times):
                raise InputError(f"`timesteps` are positions in the training table, whole numbers; given: {times}.")
        else:
            times = grids.leading(total if count is None else count, total)
        levels = grids.karras(total, self.config.sigma_max, self.config.sigma_min, rho=self.config.rho)
        return tuple(self._level(float(s)) for s in (*levels[[int(t) for t in times[::-1]]], self.config.sigma_min))
