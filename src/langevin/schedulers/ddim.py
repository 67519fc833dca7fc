"""Denoising diffusion implicit models: Song et al. 2020 (2010.02502)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.config import register_to_config
from ..core.errors import InputError
from ..core.rng import Generators, normal
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.known import blend
from ..diffusion.parallel import step_each
from ..diffusion.process import Time
from ..diffusion.solvers import FirstOrder, Resampling, climbing, jumps, rise
from ..diffusion.table import noised
from .base import SchedulerOutput, number
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
        times, ratios = grids.downwards("timesteps", timesteps), grids.downwards("sigmas", sigmas)
        return grids.upwards(super()._grid(count, times, ratios))


class RePaintScheduler(TrainedScheduler):
    """Inpainting by DDIM steps that put the known part back, and jumps back up (2201.09865).

    In the documented loop `timesteps` holds the jumps too: an entry above the one before it, p, asks for
    `undo_step(sample, p)`. In `plan` the rows climb by themselves, and `langevin.diffusion.known.keep_known` puts the
    known part back; with `resample=False` the rows are the steps alone.
    """

    _compatibles = ()
    grid_options = ("jump_length", "jump_n_sample")
    step_options = {"resample": True}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", eta: float = 0.0, trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self, resample: bool) -> Resampling:
        return Resampling(FirstOrder(eta=self.config.eta, split=True), resample=resample)

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None,
        *, jump_length: int = 10, jump_n_sample: int = 10,
    ) -> Grid:  # fmt: skip
        flat, whole = super()._grid(count, timesteps, sigmas), count is timesteps is sigmas is None
        return flat if whole else climbing(flat, jumps(len(flat) - 1, jump_length, jump_n_sample))

    def set_timesteps(
        self, num_inference_steps: int | None = None, jump_length: int = 10, jump_n_sample: int = 10,
        device: torch.device | str | None = None, timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Choose the schedule: jumps of `jump_length` steps, between which the steps are made `jump_n_sample` times."""
        options = {"jump_length": jump_length, "jump_n_sample": jump_n_sample}
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, **options)
        times = sorted({level.t for level in self._current()[:-1]})
        self.num_inference_steps = len(times)
        walk = jumps(len(times), jump_length, jump_n_sample)
        self._times = torch.tensor([times[k] for k in walk], device=self._device or "cpu")

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor,
        original_image: torch.Tensor, mask: torch.Tensor, generator: Generators = None, return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample one step less noisy; where `mask` is 1 it is the original image, noised to its level."""
        z, options = self._drawing(model_output, sample, generator, None)(), {"resample": False}
        unknown, data = self._step(model_output, timestep, sample, return_dict=False, noise=z, **options)
        known = noised(original_image, z, self._table(0, options).rows[self._next - 1].after)
        previous = blend(unknown, known, mask)
        return SchedulerOutput(previous, data) if return_dict else (previous, data)

    def undo_step(
        self, sample: torch.Tensor, timestep: Time | torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Return a sample that has come through the step at `timestep` with noise back up to that timestep."""
        row = self._table(0, {"resample": False}).rows[self._position(number(timestep))]
        keep, fresh = rise(row.after, row.level)
        return keep * sample + fresh * normal(
            sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
        )
