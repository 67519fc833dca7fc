"""Denoising diffusion implicit models: Song et al. 2020 (2010.02502)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.config import register_to_config
from ..core.errors import InputError
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.parallel import step_each
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


class DDIMParallelScheduler(DDIMScheduler):
    """DDIM with steps of many timesteps at once, for Picard iterations: Shih et al. 2023 (2305.16317)."""

    _is_ode_scheduler = True

    def batch_step_no_noise(
        self, model_output: torch.Tensor, timesteps: torch.Tensor, sample: torch.Tensor, eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """Return each row of the batch after the step at its own timestep, shape (batch, ...); `eta` must be 0."""
        if eta:
            raise InputError(f"eta is {eta}, but steps of many timesteps at once draw no noise; eta must be 0.")
        plan = self._table(0, {"use_clipped_model_output": use_clipped_model_output})
        return step_each(plan, [self._position(t) for t in timesteps.tolist()], sample, model_output)


class DDIMInverseScheduler(TrainedScheduler):
    """DDIM from data to noise: section 4.3 of the paper. The network is told the timestep at the end of each step."""

    _compatibles = ()
    renamed_options = {"set_alpha_to_zero": "set_alpha_to_one"}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, clip_sample: bool = True,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0, timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self) -> FirstOrder:
        return FirstOrder(split=True)

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None
    ) -> Grid:
        for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
            if values is not None and [*values] != sorted(values):
                raise InputError(f"`{name}` must ascend, since the run goes from data to noise; given: {[*values]}.")
        times, ratios = (None if values is None else [*values][::-1] for values in (timesteps, sigmas))
        return grids.upwards(super()._grid(count, times, ratios))
