"""Pseudo numerical methods: Liu et al. 2022 (2202.09778)."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.config import register_to_config
from ..diffusion.process import Level
from ..diffusion.solvers import PseudoNumerical
from .trained import TrainedScheduler


class PNDMScheduler(TrainedScheduler):
    """Linear multistep sampling of order 4 that starts with Runge-Kutta steps, or without (PLMS, `skip_prk_steps`).

    The start asks the network more than once per step: `timesteps` holds n + 1 entries with PLMS and n + 9 with
    Runge-Kutta (for n >= 4).
    """

    tuple_holds_data = False

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False, prediction_type: str = "epsilon", timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self) -> PseudoNumerical:
        return PseudoNumerical(middle=None if self.config.skip_prk_steps else self._middle)

    def _middle(self, a: Level, b: Level) -> Level:
        """Return the level of the whole training step half way between two."""
        return self.process.level(b.t + (a.t - b.t) // 2)
