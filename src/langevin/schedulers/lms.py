"""Linear multistep sampling in sigma."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.config import register_to_config
from ..core.errors import InputError
from ..diffusion.process import Time
from ..diffusion.solvers import LinearMultistep
from .base import SchedulerOutput
from .exploding import ExplodingScheduler


class LMSDiscreteScheduler(ExplodingScheduler):
    """Adams-Bashforth for the unequal steps in sigma."""

    step_options = {"order": 4}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, prediction_type: str = "epsilon", timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self, order: int) -> LinearMultistep:
        if order < 1:
            raise InputError(f"order is {order}; it must be at least 1, and 4 is usual.")
        return LinearMultistep(order)

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor, order: int = 4,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample one step less noisy, from the last `order` predictions."""
        return self._step(model_output, timestep, sample, return_dict=return_dict, order=order)
