"""Schedulers for networks trained with preconditioning on exploding levels: Karras et al. 2022 (2206.00364)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.config import register_to_config
from ..core.errors import InputError
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Ask, Grid
from ..diffusion.prediction import Preconditioning, Prediction, mix
from ..diffusion.process import Level, Time
from .base import ChurningScheduler, DrawingScheduler, GridNoising, Stepped, When
from .log_snr import DPMSolverMultistepScheduler


class EDMScheduler(GridNoising):
    """Base: levels from `sigma_max` to `sigma_min`, inputs of unit variance, outputs by Karras's preconditioning."""

    whole_timesteps = False
    tuple_holds_data = False
    _compatibles = ()
    choices = {
        "sigma_schedule": ("karras", "exponential"),
        "prediction_type": ("epsilon", "v_prediction"),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    }

    def _setup(self) -> None:
        self.scales_input = self.config.sigma_data
        super()._setup()

    def _label(self, sigma: Tensor) -> Tensor:
        """Return what the network is told of noise levels."""
        return 0.25 * sigma.log()

    def _level(self, sigma: float) -> Level:
        return Level(float(self._label(torch.tensor(sigma, dtype=torch.float64))) if sigma > 0 else -1.0, 1.0, sigma)

    def _grid(self, ask: Ask) -> Grid:
        if ask.timesteps is not None:
            raise InputError(f"{type(self).__name__} chooses noise levels; pass `sigmas`, the end of the run included.")
        if ask.sigmas is not None:
            return tuple(map(self._level, grids.check_levels(ask.sigmas)))
        ends, shape = (self.config.sigma_max, self.config.sigma_min), {}
        if self.config.sigma_schedule == "karras":
            shape = {"rho": self.config.rho}
        levels = grids.SCHEDULES[self.config.sigma_schedule](ask.count or len(self), *ends, **shape)
        end = self.config.sigma_min if self.config.final_sigmas_type == "sigma_min" else 0.0
        return tuple(map(self._level, [*levels.tolist(), end]))

    def _prediction(self) -> Prediction:
        sign = -1.0 if self.config.prediction_type == "v_prediction" else 1.0
        return replace(super()._prediction(), scaling=Preconditioning(self.config.sigma_data, sign=sign))

    def _init_sigma(self, grid: Grid) -> float:
        return math.hypot(self.config.sigma_max, 1.0)

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None,
                      sigmas: Sequence[float] | None = None,
                      timesteps: Sequence[Time] | None = None) -> None:  # fmt: skip
        """Choose the schedule of the next run: a number of steps, or noise levels, the end of the run included."""
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)

    def precondition_inputs(self, sample: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the sample at noise level `sigma` (broadcast against it) brought to unit variance."""
        return sample * torch.as_tensor(sigma).square().add(self.config.sigma_data**2).rsqrt()

    def precondition_noise(self, sigma: float | Tensor) -> Tensor:
        """Return what the network is told of `sigma`."""
        return self._label(torch.as_tensor(sigma))

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the estimate of the data at noise level `sigma`, free of bounds."""
        skip, out = self._prediction().scaling.data_pair(sigma)  # type: ignore[union-attr]
        return skip * sample + out * model_output


class EDMEulerScheduler(ChurningScheduler, EDMScheduler):
    """The Euler method with optional churn, algorithm 2 of the paper without its second order."""

    tuple_holds_data = True

    @register_to_config
    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
                 sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
                 rho: float = 7.0, final_sigmas_type: str = "zero") -> None:  # fmt: skip
        self._setup()

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
             s_tmax: float = math.inf, s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
             pred_original_sample: Tensor | None = None) -> Stepped:  # fmt: skip
        """Return the sample one step less noisy; `s_churn` > 0 adds noise where s_tmin <= sigma <= s_tmax.

        Args:
            pred_original_sample: the estimate of the data, instead of reading it off `model_output`; without churn.
        """
        if pred_original_sample is not None:
            if s_churn:
                raise InputError("`pred_original_sample` belongs to the sample before churn; leave out one of the two.")
            skip, out = self._prediction().pairs(self._table().steps[self._position(timestep)].level)[0]
            model_output = mix((-skip / out, 1.0 / out), sample, pred_original_sample)
        churn = s_churn, s_tmin, s_tmax, s_noise
        return super().step(model_output, timestep, sample, *churn, generator, return_dict)


class EDMDPMSolverMultistepScheduler(DrawingScheduler, EDMScheduler):
    """DPM-Solver++, multistep, orders 1 to 3: Lu et al. 2022 (2211.01095)."""

    @register_to_config
    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
                 sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
                 rho: float = 7.0, solver_order: int = 2, thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
                 euler_at_final: bool = False, final_sigmas_type: str = "zero") -> None:  # fmt: skip
        self._setup()

    _solver = DPMSolverMultistepScheduler._solver  # type: ignore[assignment]


class CosineDPMSolverMultistepScheduler(EDMDPMSolverMultistepScheduler):
    """SDE-DPM-Solver++ for networks that are told atan(sigma) * 2 / pi: Evans et al. 2024 (2407.14358)."""

    @register_to_config
    def __init__(self, sigma_min: float = 0.3, sigma_max: float = 500, sigma_data: float = 1.0,
                 sigma_schedule: str = "exponential", num_train_timesteps: int = 1000, solver_order: int = 2,
                 prediction_type: str = "v_prediction", rho: float = 7.0, solver_type: str = "midpoint",
                 lower_order_final: bool = True, euler_at_final: bool = False,
                 final_sigmas_type: str = "zero") -> None:  # fmt: skip
        self._setup()

    def _label(self, sigma: Tensor) -> Tensor:
        return sigma.atan() * 2 / math.pi
