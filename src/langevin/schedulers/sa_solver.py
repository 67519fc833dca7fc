"""SA-Solver: Xue et al. 2023 (2309.05019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..core.config import register_to_config
from ..diffusion.process import Time
from ..diffusion.solvers import SASolver
from ..diffusion.solvers.sa import middle_noise
from .base import DrawingScheduler
from .log_snr import LogSNRScheduler


class SASolverScheduler(DrawingScheduler, LogSNRScheduler):
    """Stochastic Adams steps with a corrector and noise of chosen strength.

    `tau_func` maps a timestep to the strength of the noise: 0 is the ODE, 1 the reversed noising process. It is not
    written to the configuration; without it noise is drawn between timesteps 200 and 800.
    """

    ignore_for_config = ("tau_func",)
    choices = {
        "algorithm_type": ("data_prediction", "noise_prediction"),
        "predictor_order": (1, 2, 3, 4),
        "corrector_order": (0, 1, 2, 3, 4),
    }

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, predictor_order: int = 2,
        corrector_order: int = 2, prediction_type: str = "epsilon", tau_func: Callable[[Time], float] | None = None,
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "data_prediction", lower_order_final: bool = True,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0,
        lambda_min_clipped: float = -math.inf, variance_type: str | None = None, timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:  # fmt: skip
        self.tau_func = tau_func or middle_noise
        self._setup()

    def _solver(self) -> SASolver:
        wants = "x0" if self.config.algorithm_type == "data_prediction" else "eps"
        predictor, corrector = self.config.predictor_order, self.config.corrector_order
        return SASolver(predictor, corrector, wants, self.tau_func, lower_order_final=self.config.lower_order_final)

    def _end_ratio(self) -> float:
        """As in the base, but a sigma schedule ends at its last level: the last call corrects the sample there."""
        flow = self.config.use_flow_sigmas
        return self.process.ratio(0) if self._sigma_schedule() and not flow else super()._end_ratio()
