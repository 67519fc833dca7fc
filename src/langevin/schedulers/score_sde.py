"""Score-based models: Song et al. 2021 (2011.13456), and Karras et al. 2022 (2206.00364), algorithm 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.outputs import BaseOutput
from ..core.rng import Generators
from ..diffusion import Ask, Grid, Level, Plan
from ..diffusion.levels import between_ends
from ..diffusion.process import noised_at
from ..diffusion.rows import langevin, widen
from ..diffusion.score_sde import ExplodingSDE, PreservingSDE, along, visited
from ..diffusion.solvers import Churn, Churned, EulerMaruyama, Heun, ReverseDiffusion, rise
from .base import Device, DrawingScheduler, SchedulerOutput, Stepped, When


@dataclass
class SdeVeOutput(BaseOutput):
    """Result of `step_pred`: the sample after the step, and the same before noise was added."""

    prev_sample: Tensor
    prev_sample_mean: Tensor


@dataclass
class KarrasVeOutput(BaseOutput):
    """Result of `step` and `step_correct`: the sample at the next level, the slope there, the estimate of the data."""

    prev_sample: Tensor
    derivative: Tensor
    pred_original_sample: Tensor | None = None


class ScoreScheduler(DrawingScheduler):
    """Base of schedulers in continuous time: their timesteps are times from 1 to `sampling_eps`."""

    grid_options: ClassVar[tuple[str, ...]] = ("sampling_eps",)

    def _process(self, **ends: float | None) -> ExplodingSDE | PreservingSDE:
        raise NotImplementedError

    def _grid(self, ask: Ask) -> Grid:
        ends = dict(ask.options)
        last = ends.pop("sampling_eps", None)
        return visited(self._process(**ends), ask, len(self), self.config.sampling_eps if last is None else last)

    def _predicted(self, *args: Any, generator: Generators) -> tuple[Tensor, Tensor]:
        """Return the sample after the step and the same before noise was added."""
        after = self._step(*args, generator=generator, return_dict=False)[0]
        return after, self._run.mean.to(after.dtype)  # type: ignore[union-attr]

    def _ascending(self) -> Tensor:
        """Return the alphas and sigmas of the schedule from its clean end, float32 on the CPU, shape (2, steps)."""
        return torch.tensor([(v.alpha, v.sigma) for v in self._current()[-2::-1]], dtype=torch.float32, device="cpu").T

    @property
    def discrete_sigmas(self) -> Tensor:
        """The noise level of each step, ascending, float32 on the CPU."""
        return self._ascending()[1]

    def add_noise(self, original_samples: Tensor, noise: Tensor | None, timesteps: Tensor) -> Tensor:
        """Return the samples noised to the levels number `timesteps`, shape (batch,), from the schedule's clean end."""
        drawn = self._drawing(original_samples, original_samples, None, noise)()
        return noised_at(self._ascending(), timesteps, original_samples, drawn)


class ScoreSdeVeScheduler(ScoreScheduler):
    """Reverse diffusion on exploding levels, `step_pred`, with Langevin corrections before it, `step_correct`.

    The networks of this family are told `sigmas`. A plan holds the corrections, `timesteps` the predictions only.
    """

    grid_options = ("sampling_eps", "sigma_min", "sigma_max")
    predicts = "score"

    def __init__(self, num_train_timesteps: int = 2000, snr: float = 0.15, sigma_min: float = 0.01,
                 sigma_max: float = 1348.0, sampling_eps: float = 1e-5, correct_steps: int = 1) -> None:  # fmt: skip
        self._ends: dict[str, float | None] = {}

    def _process(self, sigma_min: float | None = None, sigma_max: float | None = None) -> ExplodingSDE:
        return ExplodingSDE(sigma_min or self.config.sigma_min, sigma_max or self.config.sigma_max)

    def _solver(self, correct_steps: int = 0) -> ReverseDiffusion:
        return ReverseDiffusion(correct_steps, self.config.snr)

    def _init_sigma(self, grid: Grid) -> float:
        return grid[0].sigma

    def plan(self, num_inference_steps: int | None = None, **options: Any) -> Plan:
        """Return the table of a whole run, `correct_steps` (by default the configuration's) corrections included."""
        corrected = {} if "_solver" in vars(self) else {"correct_steps": self.config.correct_steps}
        return super().plan(num_inference_steps, **{**corrected, **options})

    def set_timesteps(self, num_inference_steps: int | None = None, sampling_eps: float | None = None,
                      device: Device = None, **schedule: Any) -> None:  # fmt: skip
        """Choose the schedule of the next run, with the noise levels of `set_sigmas`; see `plan` for `schedule`."""
        shape = {"sampling_eps": sampling_eps, **self._ends} if num_inference_steps is not None else {}
        super().set_timesteps(num_inference_steps, device, **self.step_options, **shape, **schedule)

    def set_sigmas(self, num_inference_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
                   sampling_eps: float | None = None) -> None:  # fmt: skip
        """Choose the ends of the noise levels and the schedule of the next run."""
        self._ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        self.set_timesteps(num_inference_steps, sampling_eps, self._device)

    @property
    def sigmas(self) -> Tensor:
        """The noise levels that the network is told, one per timestep."""
        return self.discrete_sigmas.flip(0)

    def step_pred(self, model_output: Tensor, timestep: When, sample: Tensor, generator: Generators = None,
                  return_dict: bool = True) -> SdeVeOutput | tuple[Tensor, ...]:  # fmt: skip
        """Return the sample at the next lower level; `model_output` is the score."""
        pair = self._predicted(model_output, timestep, sample, generator=generator)
        return SdeVeOutput(*pair) if return_dict else pair

    def step_correct(self, model_output: Tensor, sample: Tensor, generator: Generators = None,
                     return_dict: bool = True) -> Stepped:  # fmt: skip
        """Return the sample after a step of Langevin dynamics at its level; `model_output` is the score."""
        noise = self._drawing(model_output, sample, generator, None)()
        corrected = langevin(widen(sample), widen(model_output), widen(noise), self.config.snr).to(sample.dtype)
        return SchedulerOutput(corrected) if return_dict else (corrected,)


class ScoreSdeVpScheduler(ScoreScheduler):
    """Euler-Maruyama steps on preserving levels, `step_pred`; networks of this family predict the noise."""

    def __init__(self, num_train_timesteps: int = 2000, beta_min: float = 0.1, beta_max: float = 20,
                 sampling_eps: float = 1e-3) -> None: ...  # fmt: skip

    def _process(self) -> PreservingSDE:
        return PreservingSDE(self.config.beta_min, self.config.beta_max)

    def _solver(self) -> EulerMaruyama:
        return EulerMaruyama(self._process())

    def step_pred(self, score: Tensor, x: Tensor, t: When, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """Return the sample after the step at time `t` and its mean; `score` is the output as it is, the noise."""
        return self._predicted(score, t, x, generator=generator)


class KarrasVeScheduler(ScoreScheduler):
    """Heun's method with noise raised before each step; the networks of this family predict minus the noise.

    The loop is the caller's: for each timestep t, `add_noise_to_input` at schedule[t], then `step` to schedule[t - 1],
    then `step_correct` unless that is 0. `plan` holds the same run, with the network asked at the raised levels.
    """

    order = 2
    grid_options = ()
    schedule = ScoreScheduler.discrete_sigmas
    predicts = "scaled_score"

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100, s_noise: float = 1.007, s_churn: float = 80,
                 s_min: float = 0.05, s_max: float = 50) -> None:  # fmt: skip
        self._churn = Churn(s_churn, s_min, s_max, s_noise)
        self._reads = self._prediction()

    def __len__(self) -> int:
        return self.num_inference_steps or 0

    def _plan(self, grid: Grid, options: Mapping[str, Any]) -> Plan:
        return replace(super()._plan(grid, options), train_steps=len(grid) - 1)

    def _grid(self, ask: Ask) -> Grid:
        if ask.sigmas is None and ask.count is None:
            raise InputError("The timesteps of KarrasVeScheduler only count its steps; set num_inference_steps.")
        ends = self.config.sigma_max, self.config.sigma_min
        levels = between_ends(ask, len(self), *ends, end=0.0, schedule="exponential")
        return tuple(Level(len(levels) - 2 - k, 1.0, sigma) for k, sigma in enumerate(levels))

    def _solver(self) -> Churned:
        return Churned(Heun(), self._churn)

    def _init_sigma(self, grid: Grid) -> float:
        return grid[0].sigma

    @property
    def init_noise_sigma(self) -> float:
        """The highest noise level."""
        return self.config.sigma_max

    @property  # type: ignore[misc]
    def timesteps(self) -> Tensor:
        """The numbers of the steps, from the last down to 0."""
        return torch.arange(len(self) - 1, -1, -1, device=self._device)

    def add_noise_to_input(self, sample: Tensor, sigma: float | Tensor,
                           generator: Generators = None) -> tuple[Tensor, float]:  # fmt: skip
        """Return the sample with its noise raised from `sigma`, and the raised level; always draws."""
        low = Level(0, 1.0, float(sigma))
        high, noise = self._churn.raised(low, len(self)), self._drawing(sample, sample, generator, None)()
        return torch.add(sample, noise, alpha=self._churn.noise * rise(low, high)[1]), high.sigma

    def step(self, model_output: Tensor, sigma_hat: float | Tensor, sigma_prev: float | Tensor, sample_hat: Tensor,
             return_dict: bool = True) -> KarrasVeOutput | tuple[Tensor, Tensor]:  # fmt: skip
        """Return the sample after an Euler step from `sigma_hat` to `sigma_prev`."""
        slope, data = self._read(model_output, sample_hat, sigma_hat)
        previous = along(sample_hat, float(sigma_hat), float(sigma_prev), slope)
        return KarrasVeOutput(previous, slope, data) if return_dict else (previous, slope)

    def step_correct(self, model_output: Tensor, sigma_hat: float | Tensor, sigma_prev: float | Tensor,
                     sample_hat: Tensor, sample_prev: Tensor, derivative: Tensor,
                     return_dict: bool = True) -> KarrasVeOutput | tuple[Tensor, Tensor]:  # fmt: skip
        """Return the sample of `step`, corrected by the output there; `derivative` is what `step` returned."""
        slope, data = self._read(model_output, sample_prev, sigma_prev)
        previous = along(sample_hat, float(sigma_hat), float(sigma_prev), derivative, slope)
        return KarrasVeOutput(previous, derivative, data) if return_dict else (previous, derivative)

    def _read(self, output: Tensor, sample: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the slope and the estimate of the data at a noise level."""
        reading = self._reads.at(Level(0, 1.0, float(sigma)))
        return reading.noise(sample, output), reading.data(sample, output)
