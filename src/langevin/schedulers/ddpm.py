"""Denoising diffusion probabilistic models: Ho et al. 2020 (2006.11239)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..core.config import register_to_config
from ..core.errors import InputError, check_choice
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.parallel import step_each
from ..diffusion.process import Time
from ..diffusion.solvers import Posterior
from .base import DrawingScheduler, SchedulerOutput, number
from .trained import TrainedScheduler

VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned": "learned",
    "learned_range": "learned_range",
}


class DDPMScheduler(DrawingScheduler, TrainedScheduler):
    """Ancestral sampling with the posterior mean of the paper and a choice of variances.

    The "_log" variances differ from the plain ones only in how other implementations store them.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small", clip_sample: bool = True, prediction_type: str = "epsilon",
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0, timestep_spacing: str = "leading", steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:  # fmt: skip
        check_choice("variance_type", variance_type, VARIANCES)
        self.variance_type = variance_type
        self._setup()

    def _solver(self) -> Posterior:
        return Posterior(VARIANCES[self.config.variance_type])


class DDPMParallelScheduler(DDPMScheduler):
    """DDPM with steps of many timesteps at once, for Picard iterations: Shih et al. 2023 (2305.16317)."""

    _is_ode_scheduler = False

    def batch_step_no_noise(
        self, model_output: torch.Tensor, timesteps: torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean of the step of each row of the batch at its own timestep, shape (batch, ...)."""
        return step_each(self._table(), [self._position(t) for t in timesteps.tolist()], sample, model_output)


class UnCLIPScheduler(TrainedScheduler):
    """DDPM's posterior over both ends of a table of cosine betas and even steps between: unCLIP (2204.06125)."""

    _compatibles = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, variance_type: str = "fixed_small_log", clip_sample: bool = True,
        clip_sample_range: float | None = 1.0, prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
    ) -> None:  # fmt: skip
        check_choice("variance_type", variance_type, ("fixed_small_log", "learned_range"))
        self._setup()

    def _solver(self) -> Posterior:
        return Posterior("learned_range" if self.config.variance_type == "learned_range" else "fixed_small")

    def _spaced(self, count: int) -> np.ndarray:
        return grids.linspace(count, len(self) - 1) if count > 1 else np.array([len(self) - 1])

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor,
        prev_timestep: Time | torch.Tensor | None = None, generator: Generators = None, return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample at `prev_timestep`, by default the next timestep of the schedule."""
        remote = isinstance(prev_timestep, torch.Tensor) and prev_timestep.device.type != "cpu"
        if prev_timestep is None or remote:
            return self._step(model_output, timestep, sample, return_dict=return_dict, generator=generator)
        t, after = int(number(timestep)), int(number(prev_timestep))
        if not -1 <= after < t < len(self):
            raise InputError(f"prev_timestep is {after}; it must be in [-1, {t - 1}], below the timestep {t}.")
        end = self.process.level(after) if after >= 0 else self._end()
        row = self._solver().row(self.process.level(t), end, last=after < 0)
        drawing = self._drawing(model_output, sample, generator, None)
        return self._follow(row, self._table().begin(), model_output, sample, drawing, return_dict=return_dict)
