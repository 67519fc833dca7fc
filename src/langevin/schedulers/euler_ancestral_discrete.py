"""Ancestral sampling with Euler steps in the variance-exploding view."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.config import register_to_config
from ..diffusion.solvers import FirstOrder
from .base import DrawingScheduler
from .exploding import ExplodingScheduler


class EulerAncestralDiscreteScheduler(DrawingScheduler, ExplodingScheduler):
    """An Euler step to a lower level than the next one, and fresh noise up to it.

    Karras, exponential and beta levels are an addition of this library, off by default.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self) -> FirstOrder:
        return FirstOrder(eta=1.0)
