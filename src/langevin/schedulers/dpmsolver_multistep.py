"""DPM-Solver and DPM-Solver++, multistep: Lu et al. 2022 (2206.00927, 2211.01095)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..core.config import register_to_config
from ..core.errors import ConfigError, InputError, check_choice
from ..core.logging import get_logger
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.process import Level, Time, flow
from ..diffusion.solvers import ALGORITHMS, DPMMultistep
from .base import SchedulerOutput
from .trained import GridNoising

logger = get_logger(__name__)
FOREIGN = {"deis": "dpmsolver++", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
"""Algorithm and solver types of related samplers, and what they mean here when a configuration is carried over."""


def floor(times: np.ndarray) -> np.ndarray:
    """Round down; times that miss a whole one by rounding errors count as whole."""
    return np.floor(times + 1e-3)


class DPMSolverMultistepScheduler(GridNoising):
    """A fast solver of order 1 to 3 in log signal-to-noise ratio, on trained or flow noise levels."""

    grid_options = ("mu",)
    terminal_alpha_bar = 2.0**-24
    noise_dtype = torch.float32
    tuple_holds_data = False

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_lu_lambdas: bool | None = False, use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0,
        final_sigmas_type: str | None = "zero", lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None, timestep_spacing: str = "linspace", steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False, use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
    ) -> None:  # fmt: skip
        for name, value in (("algorithm_type", algorithm_type), ("solver_type", solver_type)):
            if value in FOREIGN:
                logger.info("%s=%r is taken as %r.", name, value, FOREIGN[value])
                self.register_to_config(**{name: FOREIGN[value]})
        check_choice("algorithm_type", self.config.algorithm_type, ALGORITHMS)
        check_choice("solver_type", self.config.solver_type, ("midpoint", "heun"))
        check_choice("solver_order", solver_order, (1, 2, 3))
        check_choice("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        check_choice("time_shift_type", time_shift_type, ("exponential",))
        if not self.config.algorithm_type.endswith("++") and final_sigmas_type == "zero":
            raise ConfigError(
                f"algorithm_type={algorithm_type!r} predicts noise and cannot step to sigma = 0; "
                "set final_sigmas_type='sigma_min' or use a '++' algorithm."
            )
        if (prediction_type == "flow_prediction") != bool(use_flow_sigmas) and prediction_type == "flow_prediction":
            raise ConfigError("prediction_type='flow_prediction' needs use_flow_sigmas=True.")
        self._setup()

    def _solver(self) -> DPMMultistep:
        return DPMMultistep(
            order=self.config.solver_order,
            algorithm=self.config.algorithm_type,
            midpoint=self.config.solver_type == "midpoint",
            lower_order_final=self.config.lower_order_final,
            euler_at_final=self.config.euler_at_final,
        )

    # ---- grid --------------------------------------------------------------------------------------------------------

    def _last(self) -> int:
        """Return the number of training steps whose lambda is not below `lambda_min_clipped`."""
        return int((-np.log(self.process.ratios) >= self.config.lambda_min_clipped).sum())

    def _spaced(self, count: int) -> np.ndarray:
        """Return `count` times; linspace and leading stay one stride above 0, the last step's end."""
        spacing, last = self.config.timestep_spacing, self._last()
        if spacing == "linspace":
            return grids.linspace(count + 1, last - 1)[:-1]
        if spacing == "leading":
            return grids.leading_open(count, last, self.config.steps_offset)
        return grids.trailing(count, len(self), last)

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        """Whole timesteps: rounded down on exponential and beta levels and on cosine betas, else to the nearest."""
        down = self._sigma_schedule() in ("exponential", "beta") or (
            self._sigma_schedule() and self.config.beta_schedule == "squaredcos_cap_v2"
        )
        return grids.whole(times, floor if down else np.round)

    def _grid(
        self,
        count: int | None,
        timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
        *,
        mu: float | None = None,
    ) -> Grid:
        if mu is not None and not self.config.use_dynamic_shifting:
            raise InputError("`mu` sets the shift of dynamic shifting; it needs use_dynamic_shifting=True.")
        if not self.config.use_flow_sigmas:
            return super()._grid(count, timesteps, sigmas)
        if timesteps is not None or sigmas is not None:
            raise InputError("Flow sigmas follow from num_inference_steps; custom timesteps or sigmas cannot be given.")
        if count is not None:
            grids.check_count(count)
        shift = self.config.flow_shift if mu is None else math.exp(mu)
        end = flow(-1, self.process.ratio(0) if self.config.final_sigmas_type == "sigma_min" else 0.0)
        return grids.flow_grid(count or len(self), len(self), shift=shift, end=end)

    def _sigma(self, level: Level) -> float:
        return level.sigma if self.config.use_flow_sigmas else level.ratio

    # ---- step --------------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        mu: float | None = None,
        timesteps: Sequence[Time] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the schedule of the next run; `mu` is the logarithm of the shift under `use_dynamic_shifting`."""
        super().set_timesteps(num_inference_steps, device, timesteps=timesteps, sigmas=sigmas, mu=mu)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Time | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Return the sample one step less noisy; the SDE algorithms draw float32 noise at every step.

        Args:
            variance_noise: the noise itself, instead of a draw from `generator`.
        """
        return self._step(
            model_output, timestep, sample, return_dict=return_dict, generator=generator, noise=variance_noise
        )
