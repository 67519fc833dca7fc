"""Schedulers that ask the network twice per step, in the variance-exploding view.

`timesteps` has an entry per network call, 2n - 1 for n steps, and `sigmas` the noise level of each call and of the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..core.config import register_to_config
from ..core.rng import Generators
from ..diffusion.grid import Grid
from ..diffusion.process import Level, Time
from ..diffusion.solvers import BrownianMidpoint, Heun, Midpoint
from ..diffusion.table import Plan
from .base import DrawingScheduler, SchedulerOutput
from .exploding import ExplodingScheduler


class TwoStageScheduler(ExplodingScheduler):
    """Base: the level half way between two is told by its exact, fractional timestep."""

    order = 2

    def _at(self, ratio: float) -> Level:
        return Level(self.process.time(ratio), 1.0, ratio)


class HeunDiscreteScheduler(TwoStageScheduler):
    """Heun's method: Karras et al. 2022 (2206.00364), algorithm 1."""

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, clip_sample: bool | None = False, clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self) -> Heun:
        return Heun()


class KDPM2DiscreteScheduler(TwoStageScheduler):
    """The midpoint method, DPM-Solver-2 of Karras et al.: half way in log sigma."""

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, prediction_type: str = "epsilon", timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:  # fmt: skip
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
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, noise_sampler_seed: int | None = None,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ) -> None:  # fmt: skip
        self._setup()

    def _solver(self, s_noise: float) -> BrownianMidpoint:
        return BrownianMidpoint(self._at, strength=s_noise)

    def _plan(self, grid: Grid, options: Mapping[str, Any]) -> Plan:
        return replace(super()._plan(grid, options), noise_seed=self.config.noise_sampler_seed)

    def step(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor,
        return_dict: bool = True, s_noise: float = 1.0, generator: Generators = None,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample at which the network is to be asked next; `s_noise` scales the noise from `generator`."""
        drawing = {"generator": generator, "s_noise": s_noise}
        return self._step(model_output, timestep, sample, return_dict=return_dict, **drawing)
