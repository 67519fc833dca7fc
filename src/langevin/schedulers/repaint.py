"""Inpainting that goes back and makes steps again: Lugmayr et al. 2022 (2201.09865)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.config import register_to_config
from ..core.rng import Generators, normal
from ..diffusion.grid import Grid
from ..diffusion.known import blend
from ..diffusion.process import Time
from ..diffusion.solvers import FirstOrder, Resampling, calls, jumps, rise
from ..diffusion.table import noised
from .base import SchedulerOutput, number
from .trained import TrainedScheduler


class RePaintScheduler(TrainedScheduler):
    """DDIM with `eta`, known parts put back after each step, and jumps back up.

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
        flat = super()._grid(count, timesteps, sigmas)
        if count is None and timesteps is None and sigmas is None:
            return flat
        walk = calls(jumps(len(flat) - 1, jump_length, jump_n_sample))
        return (*(flat[-2 - k] for k in walk), flat[-1])

    def set_timesteps(
        self, num_inference_steps: int | None = None, jump_length: int = 10, jump_n_sample: int = 10,
        device: torch.device | str | None = None, timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Choose the schedule of the next run.

        Args:
            jump_length: steps that each jump goes back.
            jump_n_sample: how often the steps between two jumps are made.
        """
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
        """Return the sample one step less noisy, with the known part of the image noised to its level.

        Args:
            original_image: the image in the sample's space; known where `mask` is 1, to be made where it is 0.
        """
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
        return keep * sample + fresh * normal(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
