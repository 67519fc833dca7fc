"""Denoising diffusion implicit models: Song et al. 2020 (2010.02502)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.config import register_to_config
from ..core.rng import Generators
from ..diffusion.process import Time
from ..diffusion.solvers import FirstOrder
from .base import SchedulerOutput
from .trained import TrainedScheduler


class DDIMScheduler(TrainedScheduler):
    """The first-order deterministic sampler, with `eta` between it and ancestral sampling."""

    step_options = {"eta": 0.0, "use_clipped_model_output": False}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, clip_sample: bool = True,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0, timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self, eta: float, use_clipped_model_output: bool) -> FirstOrder:
        return FirstOrder(eta=eta, split=not use_clipped_model_output)

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor, eta: float = 0.0,
        use_clipped_model_output: bool = False, generator: Generators = None,
        variance_noise: torch.Tensor | None = None, return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample one step less noisy.

        Args:
            eta: 0 draws nothing; 1 is ancestral sampling.
            use_clipped_model_output: recompute eps from the clipped data instead of keeping the network's.
            variance_noise: the noise itself, instead of a draw from `generator`.
        """
        options = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        draw = {"generator": generator, "noise": variance_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, **draw, **options)
