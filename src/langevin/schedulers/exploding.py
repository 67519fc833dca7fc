"""Samplers in the variance-exploding view, x = x_0 + sigma * eps: Karras et al. 2022 (2206.00364)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError
from ..core.rng import Generators
from ..diffusion import Ask, Grid, Level, Plan, Prediction, Time, solvers
from ..diffusion import grid as grids
from ..diffusion.labels import LABELS, labelled
from ..diffusion.levels import between_ends, exploding
from ..diffusion.prediction import Preconditioning, mix
from .base import Device, DrawingScheduler, GridNoising, Numbers, SchedulerMixin, Stepped, When
from .log_snr import DPMSolverMultistepScheduler
from .trained import TrainedScheduler


class ExplodingScheduler(GridNoising, TrainedScheduler):
    """Base of schedulers whose samples live at alpha = 1, x = x_0 + sigma * eps."""

    scales_input = 1.0
    whole_timesteps = False
    terminal_alpha_bar = 2.0**-24

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        return times.tolist()

    def _sigma_range(self, count: int) -> tuple[float, float]:
        """The configured ends, or else the levels of the first and the last timestep of the spacing."""
        times, high, low = self._spaced(count), self._own("sigma_max"), self._own("sigma_min")
        first, last = self.process.ratio(times[0]), self.process.ratio(times[-1])
        return first if high is None else high, last if low is None else low

    def _grid(self, ask: Ask) -> Grid:
        return exploding(super()._grid(ask))

    def _init_sigma(self, grid: Grid) -> float:
        """From the end of the table a run starts with noise alone, elsewhere with data of unit variance and noise."""
        first = grid[0]
        return first.norm if self.config.timestep_spacing == "leading" else first.sigma


class ChurningScheduler(SchedulerMixin):
    """Base of schedulers that take Euler steps and may raise the noise before each of them.

    Attributes:
        reads_raised: whether the output is read at the raised level instead of the one that the network was told.
    """

    reads_raised: bool = True

    def _solver(self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
                s_noise: float = 1.0) -> solvers.FirstOrder:  # fmt: skip
        churn = solvers.Churn(s_churn, s_tmin, s_tmax, s_noise, read_raised=self.reads_raised)
        return solvers.FirstOrder(churn=churn if s_churn else None)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
             s_tmax: float = math.inf, s_noise: float = 1.0, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample one step less noisy; `s_churn` > 0 adds noise where s_tmin <= sigma <= s_tmax."""
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator, **options)


class EulerDiscreteScheduler(ChurningScheduler, ExplodingScheduler):
    """The Euler method over any schedule of noise levels, with optional churn."""

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, prediction_type: str = "epsilon",
                 interpolation_type: str = "linear", use_karras_sigmas: bool = False,
                 use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, sigma_min: float | None = None,
                 sigma_max: float | None = None, timestep_spacing: str = "linspace", timestep_type: str = "discrete",
                 steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
                 final_sigmas_type: str = "zero") -> None:  # fmt: skip
        self.reads_raised = prediction_type == "epsilon"

    def _ratios(self, count: int) -> np.ndarray | None:
        if self.config.interpolation_type == "log_linear" and self._sigma_schedule() is None:
            return grids.exponential(count + 1, *TrainedScheduler._sigma_range(self, count))[:-1]
        return super()._ratios(count)

    def _grid(self, ask: Ask) -> Grid:
        grid = super()._grid(ask)
        if (self.config.prediction_type, self.config.timestep_type) == ("v_prediction", "continuous"):
            grid = tuple(labelled(level.sigma, "quarter_log") for level in grid)
        return grid


class EulerAncestralDiscreteScheduler(DrawingScheduler, ExplodingScheduler):
    """An Euler step to a lower level than the next one, and fresh noise up to it.

    Karras, exponential and beta levels are an addition of this library, off by default.
    """

    solver = solvers.FirstOrder(eta=1.0)

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, prediction_type: str = "epsilon",
                 timestep_spacing: str = "linspace", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
                 use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
                 use_beta_sigmas: bool = False) -> None: ...  # fmt: skip


class LMSDiscreteScheduler(ExplodingScheduler):
    """Adams-Bashforth for the unequal steps in sigma."""

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, use_karras_sigmas: bool = False,
                 use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, prediction_type: str = "epsilon",
                 timestep_spacing: str = "linspace", steps_offset: int = 0) -> None: ...  # fmt: skip

    def _solver(self, order: int = 4) -> solvers.LinearMultistep:
        return solvers.LinearMultistep(order)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, order: int = 4,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample one step less noisy, from the last `order` predictions."""
        return self._step(model_output, timestep, sample, return_dict=return_dict, order=order)


class TwoStageScheduler(ExplodingScheduler):
    """Base: the level half way between two is told by its exact, fractional timestep."""

    order = 2

    def _at(self, ratio: float) -> Level:
        return Level(self.process.time(ratio), 1.0, ratio)


class HeunDiscreteScheduler(TwoStageScheduler):
    """Heun's method: Karras et al. 2022 (2206.00364), algorithm 1."""

    solver = solvers.Heun()

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, prediction_type: str = "epsilon",
                 use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
                 clip_sample: bool = False, clip_sample_range: float = 1.0, timestep_spacing: str = "linspace",
                 steps_offset: int = 0) -> None: ...  # fmt: skip


class KDPM2DiscreteScheduler(TwoStageScheduler):
    """The midpoint method, DPM-Solver-2 of Karras et al.: half way in log sigma."""

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, use_karras_sigmas: bool = False,
                 use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, prediction_type: str = "epsilon",
                 timestep_spacing: str = "linspace", steps_offset: int = 0) -> None: ...  # fmt: skip

    def _solver(self) -> solvers.Midpoint:
        return solvers.Midpoint(self._at)


class KDPM2AncestralDiscreteScheduler(DrawingScheduler, KDPM2DiscreteScheduler):
    """The midpoint method to a lower level than the next one, half way to which that one lies, and noise up to it."""

    def _solver(self) -> solvers.Midpoint:
        return solvers.Midpoint(self._at, eta=1.0)


class DPMSolverSDEScheduler(TwoStageScheduler):
    """DPM-Solver++ of second order for the reverse SDE, on a Brownian path drawn from the caller's generator.

    With `noise_sampler_seed` every run draws its noise from that seed instead, whatever the generator.
    """

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, prediction_type: str = "epsilon",
                 use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
                 noise_sampler_seed: int | None = None, timestep_spacing: str = "linspace",
                 steps_offset: int = 0) -> None: ...  # fmt: skip

    def _solver(self, s_noise: float = 1.0) -> solvers.BrownianMidpoint:
        return solvers.BrownianMidpoint(self._at, strength=s_noise)

    def _plan(self, grid: Grid, options: Mapping[str, Any]) -> Plan:
        return replace(super()._plan(grid, options), noise_seed=self.config.noise_sampler_seed)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, return_dict: bool = True, s_noise: float = 1.0,
             generator: Generators = None) -> Stepped:  # fmt: skip
        """Return the sample at which the network is to be asked next; `s_noise` scales the noise from `generator`."""
        return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator, s_noise=s_noise)


class EDMScheduler(GridNoising):
    """Base: levels from `sigma_max` to `sigma_min`, inputs of unit variance, outputs by Karras's preconditioning.

    Attributes:
        told: what the network is told of noise levels, a name in `LABELS`.
    """

    told: ClassVar[str] = "quarter_log"
    choices = {
        "sigma_schedule": ("karras", "exponential"),
        "prediction_type": ("epsilon", "v_prediction"),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    }

    def _setup(self) -> None:
        self.scales_input = self.config.sigma_data
        super()._setup()

    def _grid(self, ask: Ask) -> Grid:
        if ask.timesteps is not None:
            raise InputError(f"{type(self).__name__} chooses noise levels; pass `sigmas`, the end of the run included.")
        high, low, schedule = self.config.sigma_max, self.config.sigma_min, self.config.sigma_schedule
        shape = {"rho": self.config.rho} if schedule == "karras" else {}
        end = low if self.config.final_sigmas_type == "sigma_min" else 0.0
        levels = between_ends(ask, len(self), high, low, end=end, schedule=schedule, **shape)
        return tuple(labelled(sigma, self.told) for sigma in levels)

    def _prediction(self) -> Prediction:
        sign = -1.0 if self.config.prediction_type == "v_prediction" else 1.0
        return replace(super()._prediction(), scaling=Preconditioning(self.config.sigma_data, sign=sign))

    def _init_sigma(self, grid: Grid) -> float:
        return math.hypot(self.config.sigma_max, 1.0)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Numbers = None,
                      timesteps: Numbers = None) -> None:  # fmt: skip
        """Choose the schedule of the next run: a number of steps, or noise levels, the end of the run included."""
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)

    def precondition_inputs(self, sample: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the sample at noise level `sigma` (broadcast against it) brought to unit variance."""
        return sample * self._prediction().scaling.in_scale(torch.as_tensor(sigma))  # type: ignore[union-attr]

    def precondition_noise(self, sigma: float | Tensor) -> Tensor:
        """Return what the network is told of `sigma`."""
        return LABELS[self.told](torch.as_tensor(sigma))

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the estimate of the data at noise level `sigma`, free of bounds."""
        skip, out = self._prediction().scaling.data_pair(sigma)  # type: ignore[union-attr]
        return skip * sample + out * model_output


class EDMEulerScheduler(ChurningScheduler, EDMScheduler):
    """The Euler method with optional churn, algorithm 2 of the paper without its second order."""

    tuple_holds_data = True

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
                 sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
                 rho: float = 7.0, final_sigmas_type: str = "zero") -> None: ...  # fmt: skip

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

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
                 sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
                 rho: float = 7.0, solver_order: int = 2, thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
                 euler_at_final: bool = False, final_sigmas_type: str = "zero") -> None: ...  # fmt: skip

    _solver = DPMSolverMultistepScheduler._solver  # type: ignore[assignment]


class CosineDPMSolverMultistepScheduler(EDMDPMSolverMultistepScheduler):
    """SDE-DPM-Solver++ for networks that are told an angle: Evans et al. 2024 (2407.14358)."""

    told = "angle"

    def __init__(self, sigma_min: float = 0.3, sigma_max: float = 500, sigma_data: float = 1.0,
                 sigma_schedule: str = "exponential", num_train_timesteps: int = 1000, solver_order: int = 2,
                 prediction_type: str = "v_prediction", rho: float = 7.0, solver_type: str = "midpoint",
                 lower_order_final: bool = True, euler_at_final: bool = False,
                 final_sigmas_type: str = "zero") -> None: ...  # fmt: skip


class CMStochasticIterativeScheduler(DrawingScheduler, GridNoising):
    """To the data, and back up with fresh noise, over Karras levels."""

    def __init__(self, num_train_timesteps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0,
                 sigma_data: float = 0.5, s_noise: float = 1.0, rho: float = 7.0,
                 clip_denoised: bool = True) -> None:  # fmt: skip
        if not 0 < sigma_min < sigma_max:
            raise ConfigError(f"The levels are sigma_min={sigma_min} and sigma_max={sigma_max}; need 0 < min < max.")
        self.scales_input = sigma_data

    def _solver(self) -> solvers.Renoising:
        return solvers.Renoising(low=self.config.sigma_min, scale=self.config.s_noise, draw_last=True)

    def _prediction(self) -> Prediction:
        scaling = Preconditioning(self.config.sigma_data, low=self.config.sigma_min)
        return Prediction(scaling=scaling, clip=1.0 if self.config.clip_denoised else None)

    def _init_sigma(self, grid: Grid) -> float:
        return self.config.sigma_max

    def _grid(self, ask: Ask) -> Grid:
        """Own timesteps are descending positions in the training table, of which 0 is the noisiest."""
        low, total = self.config.sigma_min, len(self)
        if ask.sigmas is not None:
            levels = grids.check_levels(ask.sigmas, low=low)
        else:
            times = grids.leading(ask.count or total, total) if ask.timesteps is None else ask.timesteps
            table = grids.karras(total, self.config.sigma_max, low, rho=self.config.rho)
            levels = [*table[grids.check_positions("timesteps", times, total)[::-1]].tolist(), low]
        return tuple(labelled(sigma, "thousand_logs") for sigma in levels)
