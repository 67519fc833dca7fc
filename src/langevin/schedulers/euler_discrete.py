"""The Euler method in the variance-exploding view: Karras et al. 2022 (2206.00364), algorithm 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..core.config import register_to_config
from ..core.errors import check_choice
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.process import Level, Time
from ..diffusion.solvers import Churn, FirstOrder
from .base import SchedulerOutput
from .exploding import ExplodingScheduler


class EulerDiscreteScheduler(ExplodingScheduler):
    """The Euler method over any schedule of noise levels, with optional churn."""

    step_options = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        interpolation_type: str = "linear", use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None, sigma_max: float | None = None, timestep_spacing: str = "linspace",
        timestep_type: str = "discrete", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:  # fmt: skip
        check_choice("interpolation_type", interpolation_type, ("linear", "log_linear"))
        check_choice("timestep_type", timestep_type, ("discrete", "continuous"))
        check_choice("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        self._setup()

    def _ratios(self, count: int) -> np.ndarray | None:
        if self.config.interpolation_type == "log_linear" and self._sigma_schedule() is None:
            return grids.exponential(count + 1, *self._table_range())[:-1]
        return super()._ratios(count)

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None
    ) -> Grid:
        continuous = self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"
        grid = super()._grid(count, timesteps, sigmas)
        if continuous:
            grid = tuple(Level(0.25 * math.log(v.sigma), 1.0, v.sigma) if v.sigma else v for v in grid)
        return grid

    def _solver(self, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> FirstOrder:
        if not s_churn:
            return FirstOrder()
        raised = self.config.prediction_type == "epsilon"
        return FirstOrder(churn=Churn(s_churn, s_tmin, s_tmax, s_noise, read_raised=raised))

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor, s_churn: float = 0.0,
        s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0, generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample one step less noisy; `s_churn` > 0 adds noise where s_tmin <= sigma <= s_tmax."""
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator, **options)
