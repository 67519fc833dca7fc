"""Schedulers whose solvers step in lambda, half the log signal-to-noise ratio: DPM-Solver and its relatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor, float32

from ..core.errors import ConfigError, InputError
from ..core.rng import Generators
from ..diffusion import Ask, Grid, Level, Time
from ..diffusion import grid as grids
from ..diffusion.levels import at_flow
from ..diffusion.process import flow, flow_sigma, preserving
from ..diffusion.solvers import ALGORITHMS, DPMMultistep, DPMSinglestep, SASolver, UniPC
from ..diffusion.solvers.sa import middle_noise
from ..diffusion.solvers.unipc import VARIANTS
from .base import Device, DrawingScheduler, GridNoising, Numbers, SchedulerMixin, Stepped, When
from .trained import TrainedScheduler


class LogSNRScheduler(GridNoising, TrainedScheduler):
    """Base of schedulers on trained or flow noise levels whose timesteps stay above the end of the table."""

    grid_options = ("mu",)
    terminal_alpha_bar = 2.0**-24
    tuple_holds_data = False

    def _check(self) -> None:
        super()._check()
        if self._own("algorithm_type") in ("dpmsolver", "sde-dpmsolver") and self._own("final_sigmas_type") == "zero":
            raise ConfigError(
                f"algorithm_type={self.config.algorithm_type!r} predicts noise and cannot step to sigma = 0; "
                "set final_sigmas_type='sigma_min' or use a '++' algorithm."
            )
        if self.config.prediction_type == "flow_prediction" and not self.config.use_flow_sigmas:
            raise ConfigError("prediction_type='flow_prediction' needs use_flow_sigmas=True.")

    def _last(self) -> int:
        """Return the number of training steps whose lambda is not below `lambda_min_clipped`."""
        return int((self.process.lams >= self._own("lambda_min_clipped", -math.inf)).sum())

    def _spaced(self, count: int) -> np.ndarray:
        if self._fractional:
            return super()._spaced(count)
        spacing, offset = self._own("timestep_spacing", "linspace"), self._own("steps_offset", 0)
        return grids.spaced_open(spacing, count, len(self), last=self._last(), offset=offset)

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        """Whole timesteps: rounded down on exponential and beta levels, else to the nearest."""
        return grids.whole(times, grids.floor if self._sigma_schedule() in ("exponential", "beta") else np.round)

    def _end_ratio(self) -> float:
        """Return sigma / alpha at the end: 0, or that of the first training step by `final_sigmas_type`.

        Classes without this option stop at that step on spacings, and go to 0 where the last level is at it already.
        """
        reached = self._sigma_schedule() or self.config.use_flow_sigmas
        final = self._own("final_sigmas_type", "zero" if reached else "sigma_min")
        return self.process.ratio(0) if final == "sigma_min" else 0.0

    def _end(self) -> Level:
        ratio = self._end_ratio()
        return flow(-1, ratio) if self.config.use_flow_sigmas else preserving(-1, ratio)

    def _flow_sigmas(self, count: int, shift: float) -> np.ndarray:
        """Return the flow noise levels of `count` steps: shifted, or those of a sigma schedule's ratios."""
        if (ratios := self._ratios(count)) is not None:
            return flow_sigma(ratios)
        return grids.shifted(np.linspace(1 - 1 / len(self), 0, count + 1)[:-1], shift)

    def _shift(self, ask: Ask) -> float:
        """Return the shift of flow noise levels: exp(mu) where it is dynamic."""
        if (mu := ask.options.get("mu")) is None:
            return self.config.flow_shift
        if not self._own("use_dynamic_shifting"):
            raise InputError("`mu` sets the shift of dynamic shifting; it needs use_dynamic_shifting=True.")
        return grids.dynamic_shift(mu)

    def _grid(self, ask: Ask) -> Grid:
        shift = self._shift(ask)
        if not self.config.use_flow_sigmas:
            return super()._grid(ask)
        if ask.timesteps is not None or ask.sigmas is not None:
            raise InputError("Flow sigmas follow from num_inference_steps; custom timesteps or sigmas cannot be given.")
        return at_flow(self._flow_sigmas(ask.count or len(self), shift), len(self), self._end())

    def _sigma(self, level: Level) -> float:
        return level.sigma if self.config.use_flow_sigmas else level.ratio

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, mu: float | None = None,
                      timesteps: Numbers = None, sigmas: Numbers = None) -> None:  # fmt: skip
        """Choose the schedule of the next run; `mu` is the logarithm of the shift under `use_dynamic_shifting`."""
        super().set_timesteps(num_inference_steps, device, timesteps=timesteps, sigmas=sigmas, mu=mu)


class DPMSolverMultistepScheduler(LogSNRScheduler):
    """A fast solver of order 1 to 3 in log signal-to-noise ratio, on trained or flow noise levels."""

    noise_dtype = float32
    choices = {"algorithm_type": ALGORITHMS}

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, solver_order: int = 2,
                 prediction_type: str = "epsilon", thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
                 euler_at_final: bool = False, use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
                 use_beta_sigmas: bool = False, use_lu_lambdas: bool = False, use_flow_sigmas: bool = False,
                 flow_shift: float | None = 1.0, final_sigmas_type: str | None = "zero",
                 lambda_min_clipped: float = -math.inf, variance_type: str | None = None,
                 timestep_spacing: str = "linspace", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
                 use_dynamic_shifting: bool = False, time_shift_type: str = "exponential") -> None: ...  # fmt: skip

    def _solver(self) -> DPMMultistep:
        order, algorithm = self.config.solver_order, self._own("algorithm_type", "sde-dpmsolver++")
        final = {"lower_order_final": self.config.lower_order_final, "euler_at_final": self.config.euler_at_final}
        return DPMMultistep(order, algorithm, midpoint=self.config.solver_type == "midpoint", **final)

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        """As in the base, but on levels of cosine betas always rounded down."""
        cosine = self._sigma_schedule() and self.config.beta_schedule == "squaredcos_cap_v2"
        return grids.whole(times, grids.floor) if cosine else super()._label(times)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, generator: Generators = None,
             variance_noise: Tensor | None = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample one step less noisy; the SDE algorithms draw float32 noise at every step.

        Args:
            variance_noise: the noise itself, instead of a draw from `generator`.
        """
        draw = {"generator": generator, "noise": variance_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, **draw)


class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler):
    """The same solver run upwards, from data to noise: the inversion of a picture."""

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, solver_order: int = 2,
                 prediction_type: str = "epsilon", thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
                 euler_at_final: bool = False, use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
                 use_beta_sigmas: bool = False, use_flow_sigmas: bool = False, flow_shift: float | None = 1.0,
                 lambda_min_clipped: float = -math.inf, variance_type: str | None = None,
                 timestep_spacing: str = "linspace", steps_offset: int = 0) -> None:  # fmt: skip
        if algorithm_type.startswith("sde"):
            raise ConfigError(
                f"algorithm_type={algorithm_type!r} draws noise, which cannot be inverted; leave out 'sde-'."
            )

    def _spaced(self, count: int) -> np.ndarray:
        if self._fractional:
            return super()._spaced(count + 1)
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

    def _grid(self, ask: Ask) -> Grid:
        """Return the levels of the downward run turned round, from the first training step up to the noisiest."""
        if ask.timesteps is not None or ask.sigmas is not None:
            raise InputError("The levels of an inversion follow from num_inference_steps alone.")
        return super()._grid(ask)[-2::-1]


class DPMSolverSinglestepScheduler(DrawingScheduler, LogSNRScheduler):
    """The solver whose steps of `solver_order` network calls use no prediction of another step."""

    choices = {"algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")}

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, solver_order: int = 2,
                 prediction_type: str = "epsilon", thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = False,
                 use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
                 use_flow_sigmas: bool = False, flow_shift: float | None = 1.0, final_sigmas_type: str | None = "zero",
                 lambda_min_clipped: float = -math.inf, variance_type: str | None = None,
                 use_dynamic_shifting: bool = False, time_shift_type: str = "exponential") -> None: ...  # fmt: skip

    def _solver(self) -> DPMSinglestep:
        order, algorithm, final = self.config.solver_order, self.config.algorithm_type, self.config.lower_order_final
        midpoint = self.config.solver_type == "midpoint"
        return DPMSinglestep(order, algorithm, midpoint=midpoint, lower_order_final=final)


class DEISMultistepScheduler(LogSNRScheduler):
    """Exact integration of the polynomial through past noise predictions in log(sigma / alpha), orders 1 to 3."""

    choices = {"algorithm_type": ("deis",), "solver_type": ("logrho",)}

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, solver_order: int = 2,
                 prediction_type: str = "epsilon", thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0, algorithm_type: str = "deis",
                 solver_type: str = "logrho", lower_order_final: bool = True, use_karras_sigmas: bool = False,
                 use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
                 flow_shift: float | None = 1.0, timestep_spacing: str = "linspace", steps_offset: int = 0,
                 use_dynamic_shifting: bool = False, time_shift_type: str = "exponential") -> None: ...  # fmt: skip

    def _solver(self) -> DPMMultistep:
        order, final = self.config.solver_order, self.config.lower_order_final
        return DPMMultistep(order, "dpmsolver", midpoint=False, lower_order_final=final, exact_third=True)


class UniPCMultistepScheduler(LogSNRScheduler):
    """A multistep predictor whose step is corrected by the next network call, at no further cost.

    `solver_p` is another scheduler whose solver predicts in place of this one's, on this one's levels. It is not
    written to the configuration.
    """

    ignore_for_config = ("solver_p",)
    choices = {"solver_type": tuple(VARIANTS)}

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, solver_order: int = 2,
                 prediction_type: str = "epsilon", thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0, predict_x0: bool = True,
                 solver_type: str = "bh2", lower_order_final: bool = True, disable_corrector: Sequence[int] = (),
                 solver_p: SchedulerMixin | None = None, use_karras_sigmas: bool = False,
                 use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
                 flow_shift: float | None = 1.0, timestep_spacing: str = "linspace", steps_offset: int = 0,
                 final_sigmas_type: str | None = "zero", rescale_betas_zero_snr: bool = False,
                 use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
                 sigma_min: float | None = None, sigma_max: float | None = None,
                 shift_terminal: float | None = None) -> None:  # fmt: skip
        if shift_terminal is not None and not use_flow_sigmas:
            raise ConfigError("`shift_terminal` is the last flow noise level; it needs use_flow_sigmas=True.")
        self.solver_p = solver_p

    def _solver(self) -> UniPC:
        predictor = None if self.solver_p is None else self.solver_p._solver()
        wants, uncorrected = "x0" if self.config.predict_x0 else "eps", tuple(self.config.disable_corrector)
        shape = {"variant": self.config.solver_type, "lower_order_final": self.config.lower_order_final}
        return UniPC(self.config.solver_order, wants, **shape, uncorrected=uncorrected, predictor=predictor)

    def _sigma_range(self, count: int) -> tuple[float, float]:
        high, low = super()._sigma_range(count)
        return self.config.sigma_max or high, self.config.sigma_min or low

    def _flow_sigmas(self, count: int, shift: float, given: Numbers = None) -> np.ndarray:
        """As in the base, from 1 or the given ones, and stretched; below 1, where lambda is infinite."""
        if self._sigma_schedule():
            return super()._flow_sigmas(count, shift)
        even = np.linspace(1, 1 / len(self), count + 1)[:-1] if given is None else np.array(given)
        sigmas, terminal = grids.shifted(even, shift), self.config.shift_terminal
        return np.minimum(sigmas if terminal is None else grids.stretched(sigmas, terminal), 1 - 1e-6)

    def _grid(self, ask: Ask) -> Grid:
        if ask.count is not None and ask.options.get("mu") is None and self.config.use_dynamic_shifting:
            raise InputError("use_dynamic_shifting=True needs `mu`, the logarithm of the shift.")
        if not self.config.use_flow_sigmas or ask.sigmas is None:
            return super()._grid(ask)
        if self._sigma_schedule():
            raise InputError(f"Custom sigmas contradict the configuration's {self._sigma_schedule()} sigmas.")
        levels = grids.check_descending("sigmas", ask.sigmas, low=1e-6, high=1.0)
        return at_flow(self._flow_sigmas(len(levels), self._shift(ask), levels), len(self), self._end())

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Numbers = None,
                      mu: float | None = None, timesteps: Numbers = None) -> None:  # fmt: skip
        """Choose the schedule of the next run; with `use_flow_sigmas`, `sigmas` are in (0, 1], the end left out.

        They are shifted like those of a number of steps, by exp(mu) under `use_dynamic_shifting`.
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

    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Numbers = None, predictor_order: int = 2,
                 corrector_order: int = 2, prediction_type: str = "epsilon",
                 tau_func: Callable[[Time], float] | None = None, thresholding: bool = False,
                 dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
                 algorithm_type: str = "data_prediction", lower_order_final: bool = True,
                 use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
                 use_flow_sigmas: bool = False, flow_shift: float | None = 1.0, lambda_min_clipped: float = -math.inf,
                 variance_type: str | None = None, timestep_spacing: str = "linspace",
                 steps_offset: int = 0) -> None:  # fmt: skip
        self.tau_func = tau_func or middle_noise

    def _solver(self) -> SASolver:
        wants = "x0" if self.config.algorithm_type == "data_prediction" else "eps"
        predictor, corrector = self.config.predictor_order, self.config.corrector_order
        return SASolver(predictor, corrector, wants, self.tau_func, lower_order_final=self.config.lower_order_final)

    def _end_ratio(self) -> float:
        """Return 0 for flow levels; trained ones end at the first training step, where the last call may correct."""
        return 0.0 if self.config.use_flow_sigmas else self.process.ratio(0)
