"""Stochastic sampling on variance-exploding levels: Karras et al. 2022 (2206.00364), algorithm 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.config import register_to_config
from ..core.errors import InputError
from ..core.outputs import BaseOutput
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.prediction import Prediction
from ..diffusion.process import Level, Time
from ..diffusion.solvers import Churn, Churned, Heun, rise
from ..diffusion.table import Plan
from .base import SchedulerMixin


@dataclass
class KarrasVeOutput(BaseOutput):
    """Result of `step` and `step_correct`: the sample at the next level, the slope there, the estimate of the data."""

    prev_sample: torch.Tensor
    derivative: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class KarrasVeScheduler(SchedulerMixin):
    """Heun's method with noise raised before each step; the networks of this family predict minus the noise.

    The loop is the caller's: for each timestep t, `add_noise_to_input` at schedule[t], then `step` to schedule[t - 1],
    then `step_correct` unless that is 0. `plan` holds the same run, with the network asked at the raised levels.
    """

    order = 2
    _compatibles = ()

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.02, sigma_max: float = 100, s_noise: float = 1.007, s_churn: float = 80,
        s_min: float = 0.05, s_max: float = 50,
    ) -> None:  # fmt: skip
        self._churn = Churn(s_churn, s_min, s_max, s_noise)
        self._setup()

    def __len__(self) -> int:
        return self.num_inference_steps or 0

    def _plan(self, grid: Grid, options: Mapping[str, Any]) -> Plan:
        return replace(super()._plan(grid, options), train_steps=len(grid) - 1)

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None
    ) -> Grid:
        if sigmas is not None:
            levels = grids.check_descending("sigmas", sigmas, low=0)
        else:
            if timesteps is not None or count is None:
                raise InputError("The timesteps of KarrasVeScheduler only count its steps; set num_inference_steps.")
            grids.check_count(count)
            levels = [*grids.exponential(count, self.config.sigma_max, self.config.sigma_min).tolist(), 0.0]
        return tuple(Level(len(levels) - 2 - k, 1.0, sigma) for k, sigma in enumerate(levels))

    def _solver(self) -> Churned:
        return Churned(Heun(), self._churn)

    def _prediction(self) -> Prediction:
        return Prediction("scaled_score")

    @property
    def init_noise_sigma(self) -> float:
        """The highest noise level."""
        return self.config.sigma_max

    def _init_sigma(self, grid: Grid) -> float:
        return grid[0].sigma

    @property
    def timesteps(self) -> torch.Tensor:
        """The numbers of the steps, from the last down to 0."""
        return torch.arange(len(self) - 1, -1, -1, device=self._device)

    @property
    def schedule(self) -> torch.Tensor:
        """The noise level of each timestep, ascending, float32 on the CPU."""
        return torch.tensor([level.sigma for level in self._current()[-2::-1]], dtype=torch.float32)

    def add_noise_to_input(
        self, sample: torch.Tensor, sigma: float | torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, float]:
        """Return the sample with its noise raised from `sigma`, and the raised level; always draws."""
        low = exploding(sigma)
        high, noise = self._churn.raised(low, len(self)), self._drawing(sample, sample, generator, None)()
        return torch.add(sample, noise, alpha=self._churn.noise * rise(low, high)[1]), high.sigma

    def step(  # type: ignore[override]
        self, model_output: torch.Tensor, sigma_hat: float | torch.Tensor, sigma_prev: float | torch.Tensor,
        sample_hat: torch.Tensor, return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Return the sample after an Euler step from `sigma_hat` to `sigma_prev`."""
        a, b = exploding(sigma_hat), exploding(sigma_prev)
        run = Plan((a, b), Heun(), self._prediction()).begin()
        previous = run.apply(Heun().single(a, b), sample_hat, model_output)
        slope = self._prediction().noise(sample_hat, model_output, a)
        return KarrasVeOutput(previous, slope, run.x0) if return_dict else (previous, slope)

    def step_correct(
        self, model_output: torch.Tensor, sigma_hat: float | torch.Tensor, sigma_prev: float | torch.Tensor,
        sample_hat: torch.Tensor, sample_prev: torch.Tensor, derivative: torch.Tensor, return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Return the sample of `step`, corrected by the output there; `derivative` is what `step` returned."""
        a, b = exploding(sigma_hat), exploding(sigma_prev)
        run = Plan((a, b), Heun(), self._prediction()).begin()
        run.saved, run.history = sample_hat, (torch.add(sample_hat, derivative, alpha=-a.sigma),)
        previous = run.apply(Heun().step(a, b)[1], sample_prev, model_output)
        return KarrasVeOutput(previous, derivative, run.x0) if return_dict else (previous, derivative)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the samples noised to the levels of `timesteps`, shape (batch,)."""
        sigmas = self.schedule.to(original_samples)[timesteps.to(original_samples.device)]
        return original_samples + sigmas.reshape(-1, *(1 for _ in original_samples.shape[1:])) * noise


def exploding(sigma: float | torch.Tensor) -> Level:
    """Return the level with alpha = 1 and the given noise."""
    return Level(0, 1.0, float(sigma))
