"""DPM-Solver and DPM-Solver++, singlestep: Lu et al. 2022 (2206.00927, 2211.01095)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.config import register_to_config
from ..diffusion.solvers import DPMSinglestep
from .base import DrawingScheduler
from .log_snr import LogSNRScheduler


class DPMSolverSinglestepScheduler(DrawingScheduler, LogSNRScheduler):
    """The solver whose steps of `solver_order` network calls use no prediction of another step."""

    choices = {"algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = False, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0, final_sigmas_type: str | None = "zero",
        lambda_min_clipped: float = -math.inf, variance_type: str | None = None, use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self) -> DPMSinglestep:
        return DPMSinglestep(
            order=self.config.solver_order,
            algorithm=self.config.algorithm_type,
            midpoint=self.config.solver_type == "midpoint",
            lower_order_final=self.config.lower_order_final,
        )
