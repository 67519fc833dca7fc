"""Ancestral sampling as unCLIP uses it: Ramesh et al. 2022 (2204.06125)."""

from __future__ import annotations

import numpy as np
import torch

from ..core.config import register_to_config
from ..core.errors import InputError, check_choice
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.process import Time
from ..diffusion.solvers import Posterior
from .base import SchedulerOutput, number
from .trained import TrainedScheduler


class UnCLIPScheduler(TrainedScheduler):
    """DDPM's posterior on cosine betas, over evenly spaced timesteps with both ends of the table."""

    _compatibles = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, variance_type: str = "fixed_small_log", clip_sample: bool = True,
        clip_sample_range: float | None = 1.0, prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
    ) -> None:  # fmt: skip
        check_choice("variance_type", variance_type, ("fixed_small_log", "learned_range"))
        check_choice("beta_schedule", beta_schedule, ("squaredcos_cap_v2",))
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
