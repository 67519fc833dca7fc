"""DPM-Solver and DPM-Solver++: Lu et al. 2022 (2206.00927, 2211.01095); DEIS: Zhang & Chen 2022 (2204.13902)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..core.config import register_to_config
from ..core.errors import ConfigError, InputError
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.process import Time
from ..diffusion.solvers import ALGORITHMS, DPMMultistep, DPMSinglestep
from .base import DrawingScheduler, SchedulerOutput
from .log_snr import LogSNRScheduler


class DPMSolverMultistepScheduler(LogSNRScheduler):
    """A fast solver of order 1 to 3 in log signal-to-noise ratio, on trained or flow noise levels."""

    noise_dtype = torch.float32
    choices = {"algorithm_type": ALGORITHMS}

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
        self._setup()

    def _solver(self) -> DPMMultistep:
        return DPMMultistep(
            order=self.config.solver_order,
            algorithm=self._own("algorithm_type", "sde-dpmsolver++"),
            midpoint=self.config.solver_type == "midpoint",
            lower_order_final=self.config.lower_order_final,
            euler_at_final=self.config.euler_at_final,
        )

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        """As in the base, but on levels of cosine betas always rounded down."""
        cosine = self._sigma_schedule() and self.config.beta_schedule == "squaredcos_cap_v2"
        return grids.whole(times, grids.floor) if cosine else super()._label(times)

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor,
        generator: Generators = None, variance_noise: torch.Tensor | None = None, return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample one step less noisy; the SDE algorithms draw float32 noise at every step.

        Args:
            variance_noise: the noise itself, instead of a draw from `generator`.
        """
        draw = {"generator": generator, "noise": variance_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, **draw)


class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler):
    """The same solver run upwards, from data to noise: the inversion of a picture."""

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        use_flow_sigmas: bool | None = False, flow_shift: float | None = 1.0, lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None, timestep_spacing: str = "linspace", steps_offset: int = 0,
    ) -> None:  # fmt: skip
        if algorithm_type.startswith("sde"):
            raise ConfigError(
                f"algorithm_type={algorithm_type!r} draws noise, which cannot be inverted; leave out 'sde-'."
            )
        self._setup()

    def _spaced(self, count: int) -> np.ndarray:
        times = super()._spaced(count)
        if times[-1] <= 0:
            raise InputError(
                f"An inversion of {count} steps visits {count + 1} levels; take {len(self) - 1} steps or fewer."
            )
        return np.append(times, 0.0)

    def _ratios(self, count: int) -> np.ndarray | None:
        return super()._ratios(count + 1)

    def _flow_sigmas(self, count: int, shift: float) -> np.ndarray:
        sigmas = super()._flow_sigmas(count, shift)
        return sigmas if self._sigma_schedule() else np.append(sigmas, min(self.process.ratio(0), sigmas[-1] / 2))

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None, *,
        mu: float | None = None,
    ) -> Grid:  # fmt: skip
        """Return the levels of the downward run turned round, from the first training step up to the noisiest."""
        if timesteps is not None or sigmas is not None:
            raise InputError("The levels of an inversion follow from num_inference_steps alone.")
        return super()._grid(count, mu=mu)[-2::-1]


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
