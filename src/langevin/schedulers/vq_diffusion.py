"""Diffusion over the tokens of a picture: Gu et al. 2022 (2111.14822)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.outputs import BaseOutput
from ..core.rng import Generators, uniform
from ..diffusion import Ask
from ..diffusion.discrete import MaskAndReplace, gumbel_argmax
from ..diffusion.grid import check_steps, trailing
from .base import Device, SchedulerMixin


@dataclass
class VQDiffusionSchedulerOutput(BaseOutput):
    """Result of `step`: tokens, int64, shape (batch, positions)."""

    prev_sample: Tensor


class VQDiffusionScheduler(SchedulerMixin):
    """Tokens that are replaced and masked, and drawn back from the posterior; it has no noise levels and no table.

    Fewer steps than the process has are strides over it.
    """

    def __init__(self, num_vec_classes: int, num_train_timesteps: int = 100, alpha_cum_start: float = 0.99999,
                 alpha_cum_end: float = 0.000009, gamma_cum_start: float = 0.000009,
                 gamma_cum_end: float = 0.99999) -> None:  # fmt: skip
        shares = (alpha_cum_start, alpha_cum_end), (gamma_cum_start, gamma_cum_end)
        self.process = MaskAndReplace(num_vec_classes, num_train_timesteps, *shares)
        self.num_embed, self.mask_class = num_vec_classes, num_vec_classes - 1
        for kind, table in (("", self.process.single), ("cumprod_", self.process.products)):
            for letter, values in zip("abc", table, strict=True):
                setattr(self, f"log_{kind}{letter}t", torch.tensor(values, dtype=torch.float32, device="cpu"))

    def _setup(self) -> None:
        self.set_timesteps(len(self))
        self.num_inference_steps = None

    def _grid(self, ask: Ask) -> NoReturn:
        raise InputError("VQDiffusionScheduler works on tokens, which have no noise levels; call `step` in a loop.")

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Choose evenly spaced steps of the process, from its noisy end."""
        check_steps(num_inference_steps, len(self))
        self._forget(None)
        self._schedule = [int(t) for t in trailing(num_inference_steps, len(self))]
        self._times = torch.tensor(self._schedule, device=device or "cpu")
        self.num_inference_steps = num_inference_steps

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> VQDiffusionSchedulerOutput | tuple[Tensor]:  # fmt: skip
        """Return the tokens of the next step, drawn from their posterior.

        Args:
            model_output: log probabilities of the clean tokens, shape (batch, classes - 1, positions).
            sample: tokens, int64, shape (batch, positions).
        """
        remote = isinstance(timestep, Tensor) and timestep.device.type != "cpu" and self._next < len(self._schedule)
        t = self._schedule[self._next] if remote else int(timestep)
        if t not in self._schedule:
            raise InputError(f"Timestep {t} is not in the schedule; loop over `scheduler.timesteps`.")
        self._next = self._schedule.index(t) + 1
        scores = model_output
        if self._next < len(self._schedule):
            scores = self.process.posterior(model_output, sample, t, before=self._schedule[self._next])
        draw = uniform(scores.shape, generator=generator, device=scores.device, dtype=scores.dtype)
        tokens = gumbel_argmax(scores, draw)
        return VQDiffusionSchedulerOutput(tokens) if return_dict else (tokens,)

    def q_posterior(self, log_p_x_0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Return log p(x_{t-1} | x_t), shape (batch, classes, positions)."""
        return self.process.posterior(log_p_x_0, x_t, int(t))
