"""Diffusion exponential integrator sampler: Zhang & Chen 2022 (2204.13902)."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.config import register_to_config
from ..diffusion.solvers import DPMMultistep
from .log_snr import LogSNRScheduler


class DEISMultistepScheduler(LogSNRScheduler):
    """Exact integration of the polynomial through past noise predictions in log(sigma / alpha), orders 1 to 3."""

    choices = {"algorithm_type": ("deis",), "solver_type": ("logrho",)}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "deis", solver_type: str = "logrho",
        lower_order_final: bool = True, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0, timestep_spacing: str = "linspace",
        steps_offset: int = 0, use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self) -> DPMMultistep:
        order, final = self.config.solver_order, self.config.lower_order_final
        return DPMMultistep(order, "dpmsolver", midpoint=False, lower_order_final=final, exact_third=True)
