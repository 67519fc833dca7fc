"""Few-step samplers for consistency models, in pixels (2303.01469) and in latent space (2310.04378, 2402.19159)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core.config import register_to_config
from ..core.errors import ConfigError
from ..core.logging import get_logger
from ..core.outputs import BaseOutput
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Ask, Grid
from ..diffusion.prediction import Boundary, Preconditioning, Prediction
from ..diffusion.process import Level, Time
from ..diffusion.solvers import Renoising, Trajectory, rise
from .base import DrawingScheduler, GridNoising, When
from .trained import TrainedScheduler

logger = get_logger(__name__)


@dataclass
class LCMSchedulerOutput(BaseOutput):
    """Result of `step`: the sample after the step, and the network's estimate of the data."""

    prev_sample: Tensor
    denoised: Tensor | None = None


@dataclass
class TCDSchedulerOutput(BaseOutput):
    """Result of `step`: the sample after the step, and before its fresh noise, at the level that noise starts from."""

    prev_sample: Tensor
    pred_noised_sample: Tensor | None = None


class LCMScheduler(DrawingScheduler, TrainedScheduler):
    """Multistep consistency sampling on the timesteps of a distillation: to the data, and back up with fresh noise."""

    grid_options = ("original_inference_steps", "strength")
    output_class = LCMSchedulerOutput
    solver = Renoising()
    _compatibles = ()

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "scaled_linear", trained_betas: Sequence[float] | None = None,
                 original_inference_steps: int = 50, clip_sample: bool = False, clip_sample_range: float = 1.0,
                 set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
                 thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 timestep_spacing: str = "leading", timestep_scaling: float = 10.0,
                 rescale_betas_zero_snr: bool = False) -> None:  # fmt: skip
        self._setup()

    def _prediction(self) -> Prediction:
        return replace(super()._prediction(), boundary=Boundary(self.config.timestep_scaling))

    def _end(self) -> Level:
        return Level(-1, 1.0, 0.0)

    def _origin(self, original: int | None, strength: float) -> np.ndarray:
        """Return the ascending times of the distillation, of the part `strength` of the table that is least noisy."""
        original = self.config.original_inference_steps if original is None else original
        return grids.distillation(original, len(self), strength)

    def _grid(self, ask: Ask) -> Grid:
        original, strength = ask.options.get("original_inference_steps"), ask.options.get("strength", 1.0)
        grids.check_strength(strength)
        if ask.count is not None:
            times = grids.distilled(ask.count, self._origin(original, strength))
            return grids.at_times(self.process, times.tolist(), self._end())
        grid = super()._grid(ask)
        if ask.timesteps is not None and (foreign := {*ask.timesteps} - {*self._origin(original, 1.0)}):
            logger.warning("Timesteps %s are not among those of the distillation.", sorted(foreign, reverse=True))
        return grid[-1 - max(int((len(grid) - 1) * strength), 1) :]

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None,
                      original_inference_steps: int | None = None, timesteps: Sequence[Time] | None = None,
                      strength: float = 1.0, sigmas: Sequence[float] | None = None) -> None:  # fmt: skip
        """Choose the schedule, out of the distillation's `original_inference_steps` below `strength` of the table."""
        options = {"original_inference_steps": original_inference_steps, "strength": strength}
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, **options)


class TCDScheduler(LCMScheduler):
    """Strategic stochastic sampling: each step goes past the next timestep by the share `eta`, and noise leads back.

    `eta` is the paper's gamma. With `original_inference_steps` given to `set_timesteps`, any timestep may be chosen.
    """

    step_options = {"eta": 0.3}
    output_class = TCDSchedulerOutput

    def _solver(self, eta: float) -> Trajectory:
        return Trajectory(self.process.level, eta)

    def _prediction(self) -> Prediction:
        return Prediction(self.config.prediction_type)

    def _end(self) -> Level:
        return self.process.level(0)

    def _origin(self, original: int | None, strength: float) -> np.ndarray:
        return super()._origin(None, strength) if original is None else np.arange(int(len(self) * strength))

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, eta: float = 0.3, generator: Generators = None,
             return_dict: bool = True) -> TCDSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """Return the sample one step less noisy; `eta` = 0 draws nothing."""
        previous, _ = self._step(model_output, timestep, sample, return_dict=False, generator=generator, eta=eta)
        after = self._current()[self._next]
        keep, _ = rise(self._solver(eta).past(after), after)
        result = TCDSchedulerOutput(previous, (self._run.mean / keep).to(sample.dtype))  # type: ignore[union-attr]
        return result if return_dict else result.to_tuple()


class CMStochasticIterativeScheduler(DrawingScheduler, GridNoising):
    """To the data, and back up with fresh noise, over Karras levels; the network is told 250 * log(sigma)."""

    _compatibles = ()
    whole_timesteps = False
    tuple_holds_data = False

    @register_to_config
    def __init__(self, num_train_timesteps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0,
                 sigma_data: float = 0.5, s_noise: float = 1.0, rho: float = 7.0,
                 clip_denoised: bool = True) -> None:  # fmt: skip
        if not 0 < sigma_min < sigma_max:
            raise ConfigError(f"The levels are sigma_min={sigma_min} and sigma_max={sigma_max}; need 0 < min < max.")
        self.scales_input = sigma_data
        self._setup()

    def _solver(self) -> Renoising:
        return Renoising(low=self.config.sigma_min, scale=self.config.s_noise, draw_last=True)

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
        return tuple(Level(250.0 * math.log(sigma), 1.0, sigma) for sigma in levels)
