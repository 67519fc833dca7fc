"""Samplers in the variance-exploding view, x = x_0 + sigma * eps: Karras et al. 2022 (2206.00364)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..core.config import register_to_config
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Ask, Grid
from ..diffusion.process import Level, Time
from ..diffusion.solvers import BrownianMidpoint, FirstOrder, Heun, LinearMultistep, Midpoint
from ..diffusion.table import Plan
from .base import ChurningScheduler, DrawingScheduler, GridNoising, Stepped, When
from .trained import TrainedScheduler


class ExplodingScheduler(GridNoising, TrainedScheduler):
    """Base of schedulers whose samples live at alpha = 1, x = x_0 + sigma * eps."""

    scales_input = 1.0
    whole_timesteps = False
    terminal_alpha_bar = 2.0**-24

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        return times.tolist()

    def _sigma_range(self, count: int) -> tuple[float, float]:
        """The configured ends, or else the levels of the first and the last timestep of the spacing."""
        times, high, low = self._spaced(count), self._own("sigma_max"), self._own("sigma_min")
        first, last = self.process.ratio(times[0]), self.process.ratio(times[-1])
        return first if high is None else high, last if low is None else low

    def _grid(self, ask: Ask) -> Grid:
        return grids.exploding(super()._grid(ask))

    def _init_sigma(self, grid: Grid) -> float:
        """From the end of the table a run starts with noise alone, elsewhere with data of unit variance and noise."""
        first = grid[0]
        return first.norm if self.config.timestep_spacing == "leading" else first.sigma


class EulerDiscreteScheduler(ChurningScheduler, ExplodingScheduler):
    """The Euler method over any schedule of noise levels, with optional churn."""

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
                 prediction_type: str = "epsilon", interpolation_type: str = "linear",
                 use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
                 use_beta_sigmas: bool | None = False, sigma_min: float | None = None, sigma_max: float | None = None,
                 timestep_spacing: str = "linspace", timestep_type: str = "discrete", steps_offset: int = 0,
                 rescale_betas_zero_snr: bool = False, final_sigmas_type: str = "zero") -> None:  # fmt: skip
        self.reads_raised = prediction_type == "epsilon"
        self._setup()

    def _ratios(self, count: int) -> np.ndarray | None:
        if self.config.interpolation_type == "log_linear" and self._sigma_schedule() is None:
            return grids.exponential(count + 1, *self._table_range())[:-1]
        return super()._ratios(count)

    def _grid(self, ask: Ask) -> Grid:
        grid = super()._grid(ask)
        if self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction":
            grid = tuple(Level(0.25 * math.log(v.sigma), 1.0, v.sigma) if v.sigma else v for v in grid)
        return grid


class EulerAncestralDiscreteScheduler(DrawingScheduler, ExplodingScheduler):
    """An Euler step to a lower level than the next one, and fresh noise up to it.

    Karras, exponential and beta levels are an addition of this library, off by default.
    """

    solver = FirstOrder(eta=1.0)

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
                 prediction_type: str = "epsilon", timestep_spacing: str = "linspace", steps_offset: int = 0,
                 rescale_betas_zero_snr: bool = False, use_karras_sigmas: bool | None = False,
                 use_exponential_sigmas: bool | None = False,
                 use_beta_sigmas: bool | None = False) -> None:  # fmt: skip
        self._setup()


class LMSDiscreteScheduler(ExplodingScheduler):
    """Adams-Bashforth for the unequal steps in sigma."""

    step_options = {"order": 4}

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
                 beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
                 use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
                 use_beta_sigmas: bool | None = False, prediction_type: str = "epsilon",
                 timestep_spacing: str = "linspace", steps_offset: int = 0) -> None:  # fmt: skip
        self._setup()

    def _solver(self, order: int) -> LinearMultistep:
        return LinearMultistep(order)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, order: int = 4,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample one step less noisy, from the last `order` predictions."""
        return self._step(model_output, timestep, sample, return_dict=return_dict, order=order)


class TwoStageScheduler(ExplodingScheduler):
    """Base: the level half way between two is told by its exact, fractional timestep."""

    order = 2

    def _at(self, ratio: float) -> Level:
        return Level(self.process.time(ratio), 1.0, ratio)


class HeunDiscreteScheduler(TwoStageScheduler):
    """Heun's method: Karras et al. 2022 (2206.00364), algorithm 1."""

    solver = Heun()

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
                 prediction_type: str = "epsilon", use_karras_sigmas: bool | None = False,
                 use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
                 clip_sample: bool | None = False, clip_sample_range: float = 1.0, timestep_spacing: str = "linspace",
                 steps_offset: int = 0) -> None:  # fmt: skip
        self._setup()


class KDPM2DiscreteScheduler(TwoStageScheduler):
    """The midpoint method, DPM-Solver-2 of Karras et al.: half way in log sigma."""

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
                 use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
                 use_beta_sigmas: bool | None = False, prediction_type: str = "epsilon",
                 timestep_spacing: str = "linspace", steps_offset: int = 0) -> None:  # fmt: skip
        self._setup()

    def _solver(self) -> Midpoint:
        return Midpoint(self._at)


class KDPM2AncestralDiscreteScheduler(DrawingScheduler, KDPM2DiscreteScheduler):
    """The midpoint method to a lower level than the next one, half way to which that one lies, and noise up to it."""

    def _solver(self) -> Midpoint:
        return Midpoint(self._at, eta=1.0)


class DPMSolverSDEScheduler(TwoStageScheduler):
    """DPM-Solver++ of second order for the reverse SDE, on a Brownian path drawn from the caller's generator.

    With `noise_sampler_seed` every run draws its noise from that seed instead, whatever the generator.
    """

    step_options = {"s_noise": 1.0}

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
                 beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
                 prediction_type: str = "epsilon", use_karras_sigmas: bool | None = False,
                 use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
                 noise_sampler_seed: int | None = None, timestep_spacing: str = "linspace",
                 steps_offset: int = 0) -> None:  # fmt: skip
        self._setup()

    def _solver(self, s_noise: float) -> BrownianMidpoint:
        return BrownianMidpoint(self._at, strength=s_noise)

    def _plan(self, grid: Grid, options: Mapping[str, Any]) -> Plan:
        return replace(super()._plan(grid, options), noise_seed=self.config.noise_sampler_seed)

    def step(self, model_output: Tensor, timestep: When, sample: Tensor, return_dict: bool = True, s_noise: float = 1.0,
             generator: Generators = None) -> Stepped:  # fmt: skip
        """Return the sample at which the network is to be asked next; `s_noise` scales the noise from `generator`."""
        drawing = {"generator": generator, "s_noise": s_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, **drawing)
