"""Schedulers over a table of betas: the tables, the grids that the documented options mean, and noising by timestep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from ..diffusion import Ask, Grid, Level, Time
from ..diffusion import grid as grids
from ..diffusion.betas import betas, check_options
from ..diffusion.levels import on_table
from ..diffusion.process import TableProcess, noised_at, preserving, velocity_at
from .base import KarrasDiffusionSchedulers, SchedulerMixin


class TrainedScheduler(SchedulerMixin):
    """Base of schedulers whose process is a trained table of betas.

    Options are read through `_own`, so that a key which only another class knows, kept in the configuration for it,
    has no effect here.

    Attributes:
        terminal_alpha_bar: replaces the last alpha_bar of a schedule with zero terminal signal-to-noise ratio, for
            solvers that need a finite noise level there.
    """

    whole_timesteps = True
    tuple_holds_data = True
    terminal_alpha_bar: ClassVar[float | None] = None
    _compatibles = tuple(member.name for member in KarrasDiffusionSchedulers)

    def _setup(self) -> None:
        if self._own("trained_betas") is None:
            check_options(**self._beta_options)
        super()._setup()

    @property
    def _beta_options(self) -> dict[str, Any]:
        ends = {"start": self._own("beta_start", 0.0001), "end": self._own("beta_end", 0.02)}
        return {"schedule": self.config.beta_schedule, "count": self.config.num_train_timesteps, **ends}

    @cached_property
    def betas(self) -> Tensor:
        """The variances added per training step, float32, shape (num_train_timesteps,)."""
        rescaled = bool(self._own("rescale_betas_zero_snr"))
        return betas(**self._beta_options, trained=self._own("trained_betas"), zero_terminal_snr=rescaled)

    @cached_property
    def alphas(self) -> Tensor:
        """1 - betas."""
        return 1.0 - self.betas

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """The cumulative products of the alphas; a table assigned here is used from the next `set_timesteps` on."""
        bars = torch.cumprod(self.alphas, dim=0)
        if self.terminal_alpha_bar is not None and self._own("rescale_betas_zero_snr"):
            bars[-1] = self.terminal_alpha_bar
        return bars

    @cached_property
    def final_alpha_cumprod(self) -> Tensor:
        """alpha_bar at the end of a run."""
        return torch.tensor(self._end().alpha ** 2, dtype=torch.float32, device="cpu")

    @property
    def process(self) -> TableProcess:
        """The process that `alphas_cumprod` describes."""
        known = self.__dict__.get("_process")
        if known is None or known[0] is not self.alphas_cumprod:
            known = self.alphas_cumprod, TableProcess(self.alphas_cumprod.cpu().double().numpy())
            self._process = known
        return known[1]

    def __len__(self) -> int:
        return len(self.betas)

    def _end(self) -> Level:
        """Return the level at the end of a run: clean data, unless an option names the first training step."""
        first = self._own("set_alpha_to_one") is False or self._own("final_sigmas_type") == "sigma_min"
        return preserving(-1, self.process.ratio(0) if first else 0.0)

    def _spaced(self, count: int) -> np.ndarray:
        """Return `count` times of the training table by the configured spacing."""
        if self._fractional:
            return np.linspace(self._last() - 1, 0, count)
        spacing, offset = self._own("timestep_spacing", "leading"), self._own("steps_offset", 0)
        return grids.spaced(spacing, count, len(self), offset=offset)

    def _label(self, times: np.ndarray) -> Sequence[Time]:
        """Return the timesteps that the network is told for the process's times."""
        return grids.whole(times)

    @property
    def _fractional(self) -> bool:
        """Whether the levels and timesteps are k-diffusion's, which are not rounded to the training table."""
        return self._own("timestep_spacing") == "k_diffusion"

    def _last(self) -> int:
        """Return the number of training steps that a run may visit."""
        return len(self)

    def _init_sigma(self, grid: Grid) -> float:
        """Return the deviation of the noise that a run starts from; in k-diffusion it is the first level's own."""
        return grid[0].sigma if self._fractional else 1.0

    def _sigma_range(self, count: int) -> tuple[float, float]:
        """Return the ends of a sigma schedule: the highest and the lowest noise level, here of the training table."""
        return float(self.process.ratios[-1]), float(self.process.ratios[0])

    def _ratios(self, count: int) -> np.ndarray | None:
        """Return the noise levels of `count` steps if the configuration chooses levels rather than timesteps."""
        schedule = self._sigma_schedule()
        return grids.SCHEDULES[schedule](count, *self._sigma_range(count)) if schedule else None

    def _grid(self, ask: Ask) -> Grid:
        if ask.timesteps is not None and (schedule := self._sigma_schedule()):
            raise InputError(f"Custom timesteps contradict the configuration's {schedule} sigmas; pass `sigmas`.")
        label = None if self._fractional else self._label
        return on_table(ask, self.process, self._end(), spaced=self._spaced, ratios=self._ratios, label=label)

    def _alpha_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of the training table, shape (2, steps), and checked timesteps of it."""
        timesteps = torch.as_tensor(timesteps, device=like.device)
        if timesteps.device.type == "cpu" and not bool(((timesteps >= 0) & (timesteps < len(self))).all()):
            raise InputError(f"Timesteps must lie in 0 ... {len(self) - 1}; given: {timesteps.tolist()}.")
        bars = self.alphas_cumprod.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        return torch.stack([bars.sqrt(), (1 - bars).sqrt()]), timesteps

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the samples noised to their timesteps of the training table, alpha * x_0 + sigma * eps.

        Args:
            original_samples, noise: shape (batch, ...).
            timesteps: integers, shape (batch,) or (1,).
        """
        return noised_at(*self._alpha_sigma(timesteps, original_samples), original_samples, noise)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the target of v-prediction at the samples' timesteps of the training table."""
        return velocity_at(*self._alpha_sigma(timesteps, sample), sample, noise)
