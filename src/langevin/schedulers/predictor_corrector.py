"""Predictor-corrector methods: UniPC, Zhao et al. 2023 (2302.04867), and SA-Solver, Xue et al. 2023 (2309.05019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..core.config import register_to_config
from ..core.errors import ConfigError, InputError
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.process import Time
from ..diffusion.solvers import SASolver, UniPC
from ..diffusion.solvers.sa import middle_noise
from ..diffusion.solvers.unipc import VARIANTS
from .base import DrawingScheduler, SchedulerMixin
from .log_snr import LogSNRScheduler


class UniPCMultistepScheduler(LogSNRScheduler):
    """A multistep predictor whose step is corrected by the next network call, at no further cost.

    `solver_p` is another scheduler whose solver predicts in place of this one's, on this one's levels. It is not
    written to the configuration.
    """

    ignore_for_config = ("solver_p",)
    choices = {"solver_type": tuple(VARIANTS)}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, predict_x0: bool = True, solver_type: str = "bh2",
        lower_order_final: bool = True, disable_corrector: Sequence[int] = (), solver_p: SchedulerMixin | None = None,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0,
        timestep_spacing: str = "linspace", steps_offset: int = 0, final_sigmas_type: str | None = "zero",
        rescale_betas_zero_snr: bool = False, use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
        sigma_min: float | None = None, sigma_max: float | None = None, shift_terminal: float | None = None,
    ) -> None:  # fmt: skip
        if shift_terminal is not None and not use_flow_sigmas:
            raise ConfigError("`shift_terminal` is the last flow noise level; it needs use_flow_sigmas=True.")
        self.solver_p = solver_p
        self._setup()

    def _solver(self) -> UniPC:
        predictor = None if self.solver_p is None else self.solver_p._solver(**self.solver_p.step_options)
        return UniPC(
            order=self.config.solver_order,
            wants="x0" if self.config.predict_x0 else "eps",
            variant=self.config.solver_type,
            lower_order_final=self.config.lower_order_final,
            uncorrected=tuple(self.config.disable_corrector),
            predictor=predictor,
        )

    def _sigma_range(self, count: int) -> tuple[float, float]:
        high, low = super()._sigma_range(count)
        return self.config.sigma_max or high, self.config.sigma_min or low

    def _flow_sigmas(self, count: int, shift: float, given: Sequence[float] | None = None) -> np.ndarray:
        """As in the base, from 1 or the given ones, and stretched; below 1, where lambda is infinite."""
        if self._sigma_schedule():
            return super()._flow_sigmas(count, shift)
        even = np.linspace(1, 1 / len(self), count + 1)[:-1] if given is None else np.array(given)
        sigmas, terminal = grids.shifted(even, shift), self.config.shift_terminal
        return np.minimum(sigmas if terminal is None else grids.stretched(sigmas, terminal), 1 - 1e-6)

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None, *,
        mu: float | None = None,
    ) -> Grid:  # fmt: skip
        if count is not None and mu is None and self.config.use_dynamic_shifting:
            raise InputError("use_dynamic_shifting=True needs `mu`, the logarithm of the shift.")
        if not self.config.use_flow_sigmas or sigmas is None:
            return super()._grid(count, timesteps, sigmas, mu=mu)
        if self._sigma_schedule():
            raise InputError(f"Custom sigmas contradict the configuration's {self._sigma_schedule()} sigmas.")
        levels = grids.check_descending("sigmas", sigmas, low=1e-6, high=1.0)
        shift = self.config.flow_shift if mu is None else math.exp(mu)
        return grids.at_flow(self._flow_sigmas(len(levels), shift, levels), len(self), self._end())

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None, mu: float | None = None, timesteps: Sequence[Time] | None = None,
    ) -> None:  # fmt: skip
        """Choose the schedule of the next run.

        Args:
            sigmas: with `use_flow_sigmas` the noise levels of the network calls before the shift, in (0, 1]; the end
                of the run follows them. Otherwise as for `plan`.
            mu: the logarithm of the shift under `use_dynamic_shifting`.
        """
        super().set_timesteps(num_inference_steps, device, mu, timesteps, sigmas)


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
        """Return 0 for flow levels; trained ones end at the first training step, where the last call may correct."""
        return 0.0 if self.config.use_flow_sigmas else self.process.ratio(0)
