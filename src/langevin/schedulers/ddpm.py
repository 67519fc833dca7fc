"""Denoising diffusion probabilistic models: Ho et al. 2020 (2006.11239)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.config import register_to_config
from ..core.errors import check_choice
from ..diffusion.parallel import step_each
from ..diffusion.solvers import Posterior
from .base import DrawingScheduler
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
