"""Score-based models: Song et al. 2021 (2011.13456)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.config import register_to_config
from ..core.outputs import BaseOutput
from ..core.rng import Generators
from ..diffusion import grid as grids
from ..diffusion.grid import Grid
from ..diffusion.prediction import Prediction
from ..diffusion.process import Time
from ..diffusion.score_sde import CLEAN, ExplodingSDE, PreservingSDE, langevin
from ..diffusion.solvers import EulerMaruyama, ReverseDiffusion
from ..diffusion.table import Plan, widen
from .base import DrawingScheduler, SchedulerOutput


@dataclass
class SdeVeOutput(BaseOutput):
    """Result of `step_pred`: the sample after the step, and the same before noise was added."""

    prev_sample: torch.Tensor
    prev_sample_mean: torch.Tensor


class ScoreScheduler(DrawingScheduler):
    """Base of the two: their timesteps are times from 1 to `sampling_eps`."""

    whole_timesteps = False
    grid_options = ("sampling_eps",)
    _compatibles = ()

    def _process(self, **ends: float | None) -> ExplodingSDE | PreservingSDE:
        raise NotImplementedError

    def _grid(
        self, count: int | None, timesteps: Sequence[Time] | None = None, sigmas: Sequence[float] | None = None,
        sampling_eps: float | None = None, **ends: float | None,
    ) -> Grid:  # fmt: skip
        process = self._process(**ends)
        if timesteps is not None:
            return (*map(process.level, grids.check_descending("timesteps", timesteps, low=1e-9, high=1.0)), CLEAN)
        if sigmas is not None:
            levels = grids.check_descending("sigmas", sigmas, low=0)
            return tuple(process.at(sigma) if sigma else CLEAN for sigma in levels)
        count = len(self) if count is None else count
        grids.check_count(count)
        return process.grid(count, self.config.sampling_eps if sampling_eps is None else sampling_eps)

    def _predicted(self, *args: Any, generator: Generators) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sample after the step and the same before noise was added."""
        after = self._step(*args, generator=generator, return_dict=False)[0]
        return after, self._run.mean.to(after.dtype)  # type: ignore[union-attr]


class ScoreSdeVeScheduler(ScoreScheduler):
    """Reverse diffusion on exploding levels, `step_pred`, with Langevin corrections before it, `step_correct`.

    The networks of this family are told `sigmas`. A plan holds the corrections, `timesteps` the predictions only.
    """

    step_options = {"correct_steps": 0}
    grid_options = ("sampling_eps", "sigma_min", "sigma_max")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 2000, snr: float = 0.15, sigma_min: float = 0.01, sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5, correct_steps: int = 1,
    ) -> None:  # fmt: skip
        self._ends: dict[str, float | None] = {}
        self._setup()

    def _process(self, sigma_min: float | None = None, sigma_max: float | None = None) -> ExplodingSDE:
        return ExplodingSDE(sigma_min or self.config.sigma_min, sigma_max or self.config.sigma_max)

    def _solver(self, correct_steps: int) -> ReverseDiffusion:
        return ReverseDiffusion(correct_steps, self.config.snr)

    def _prediction(self) -> Prediction:
        return Prediction("score")

    def _init_sigma(self, grid: Grid) -> float:
        return grid[0].sigma

    def plan(self, num_inference_steps: int | None = None, **options: Any) -> Plan:
        """Return the table of a whole run, `correct_steps` (by default the configuration's) corrections included."""
        corrected = {} if "_solver" in vars(self) else {"correct_steps": self.config.correct_steps}
        return super().plan(num_inference_steps, **{**corrected, **options})

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, sampling_eps: float | None = None,
        device: torch.device | str | None = None, **schedule: Any,
    ) -> None:  # fmt: skip
        """Choose the schedule of the next run, with the noise levels of `set_sigmas`; see `plan` for `schedule`."""
        shape = {"sampling_eps": sampling_eps, **self._ends} if num_inference_steps is not None else {}
        super().set_timesteps(num_inference_steps, device, correct_steps=0, **shape, **schedule)

    def set_sigmas(
        self, num_inference_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:  # fmt: skip
        """Choose the ends of the noise levels and the schedule of the next run."""
        self._ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        self.set_timesteps(num_inference_steps, sampling_eps, self._device)

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels that the network is told, one per timestep."""
        return super().sigmas[:-1]

    @property
    def discrete_sigmas(self) -> torch.Tensor:
        """The noise levels of the schedule, ascending."""
        return self.sigmas.flip(0)

    def step_pred(
        self, model_output: torch.Tensor, timestep: Time | torch.Tensor, sample: torch.Tensor,
        generator: Generators = None, return_dict: bool = True,
    ) -> SdeVeOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Return the sample at the next lower level; `model_output` is the score."""
        pair = self._predicted(model_output, timestep, sample, generator=generator)
        return SdeVeOutput(*pair) if return_dict else pair

    def step_correct(
        self, model_output: torch.Tensor, sample: torch.Tensor, generator: Generators = None, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Return the sample after a step of Langevin dynamics at its level; `model_output` is the score."""
        noise = self._drawing(model_output, sample, generator, None)()
        corrected = langevin(*map(widen, (sample, model_output, noise)), self.config.snr).to(sample.dtype)
        return SchedulerOutput(corrected) if return_dict else (corrected,)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor | None, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return the samples noised to `discrete_sigmas` at integer `timesteps`, shape (batch,)."""
        noise = self._drawing(original_samples, original_samples, None, noise)()
        sigmas = self.discrete_sigmas.to(original_samples)[timesteps.to(original_samples.device)]
        return original_samples + sigmas.reshape(-1, *(1 for _ in original_samples.shape[1:])) * noise


class ScoreSdeVpScheduler(ScoreScheduler):
    """Euler-Maruyama steps on preserving levels, `step_pred`; networks of this family predict the noise."""

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 2000, beta_min: float = 0.1, beta_max: float = 20, sampling_eps: float = 1e-3
    ) -> None:
        self._setup()

    def _process(self) -> PreservingSDE:  # type: ignore[override]
        return PreservingSDE(self.config.beta_min, self.config.beta_max)

    def _solver(self) -> EulerMaruyama:
        return EulerMaruyama(self._process())

    def _prediction(self) -> Prediction:
        return Prediction("epsilon")

    def step_pred(
        self, score: torch.Tensor, x: torch.Tensor, t: Time | torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sample after the step at time `t`, and the same before noise was added.

        Args:
            score: the network's output; it is the noise, and the score follows from it.
        """
        return self._predicted(score, t, x, generator=generator)
