"""Diffusion over tokens: Gu et al. 2022 (2111.14822), mask-and-replace, after Austin et al. 2021 (2107.03006).

In a step a token stays with probability a, becomes each of the N ordinary tokens with b, and the mask with c, where
a + N * b + c = 1; a masked token stays masked. Products of such steps have the same form, so a process is three numbers
per step and three per product of steps, kept as float64 logarithms. Probabilities are tensors of shape
(batch, classes, positions) and tokens of (batch, positions); the mask is the last class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..core.errors import ConfigError, InputError

LEAST = 1e-30
ZERO = math.log(LEAST)
"""The logarithm that stands for probability 0, which is taken for `LEAST`."""


def told_apart(tokens: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which ordinary class each of `tokens` is, and whether it is the mask.

    Shapes: bool, (batch, classes - 1, positions) and (batch, 1, positions).
    """
    tokens = tokens.unsqueeze(1)
    ordinary = torch.arange(classes - 1, device=tokens.device).reshape(-1, *(1 for _ in tokens.shape[2:]))
    return tokens == ordinary, tokens == classes - 1


def gumbel_argmax(log_probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return a token for each position, drawn with the given log probabilities (free of a constant).

    Args:
        uniform: draws from [0, 1) in the same shape.
    """
    waiting = (uniform + LEAST).log().neg()  # exponentially distributed
    return (log_probabilities - waiting.log()).argmax(dim=1)


@dataclass(frozen=True)
class MaskAndReplace:
    """The process as two falling and rising lines: the share of tokens untouched, and the share of masks.

    Attributes:
        classes: number of classes, the mask included.
        steps: length of the process.
        alpha: share of untouched tokens after the first and after the last step.
        gamma: share of masks after the first and after the last step.
    """

    classes: int
    steps: int = 100
    alpha: tuple[float, float] = (0.99999, 0.000009)
    gamma: tuple[float, float] = (0.000009, 0.99999)

    def __post_init__(self) -> None:
        if self.classes < 2 or self.steps < 1:
            raise ConfigError(f"{self.classes} classes and {self.steps} steps; at least 2 and 1 are needed.")
        if not (min(self.alpha) > 0 and max(self.alpha) < 1 and min(self.gamma) > 0 and max(self.gamma) < 1):
            raise ConfigError(f"alpha {self.alpha} and gamma {self.gamma} are shares; they must lie between 0 and 1.")

    @cached_property
    def products(self) -> np.ndarray:
        """Logarithms of (a, b, c) of the first t + 1 steps together, shape (3, steps + 1); the last column is none."""
        stay = np.append(np.linspace(*self.alpha, self.steps), 1.0)
        mask = np.append(np.linspace(*self.gamma, self.steps), 0.0)
        return self.logarithms(stay, mask)

    @cached_property
    def single(self) -> np.ndarray:
        """Logarithms of (a, b, c) of step t alone, shape (3, steps)."""
        return np.stack([self.between(t, t - 1) for t in range(self.steps)], axis=1)

    def between(self, t: int, since: int) -> np.ndarray:
        """Return the logarithms of (a, b, c) of the steps from time `since` to `t` together; -1 is the data."""
        (stay, _, mask), (before, _, masked) = np.exp(self.products[:, [t, since]].T)
        return self.logarithms(stay / before, 1.0 - (1.0 - mask) / (1.0 - masked))

    @cached_property
    def _shares(self) -> dict[tuple[int, int], tuple[float, ...]]:
        return {}

    def shares(self, t: int, since: int = -1) -> tuple[float, ...]:
        """Return `between` as host numbers, and the logarithm of a + b; they are worked out once."""
        if (t, since) not in self._shares:
            stay, replace, mask = (self.products[:, t] if since == -1 else self.between(t, since)).tolist()
            self._shares[t, since] = stay, replace, mask, float(np.logaddexp(stay, replace))
        return self._shares[t, since]

    def logarithms(self, stay: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the logarithms of (a, b, c) for given a and c."""
        rest = 1.0 - stay - mask
        if np.min(rest) < -1e-9:
            raise ConfigError(f"alpha {self.alpha} and gamma {self.gamma} are more than the whole at some step.")
        replace = np.maximum(rest, 0.0) / (self.classes - 1)
        with np.errstate(divide="ignore"):
            return np.log(np.stack([stay, replace, mask]))

    def forward(self, log_data: torch.Tensor, t: int) -> torch.Tensor:
        """Return log q(x_t) for log probabilities of the data over the ordinary tokens; t = -1 is the data itself.

        Args:
            log_data: shape (batch, classes - 1, positions); need not be normalised.
        """
        stay, replace, mask, _ = self.shares(t)
        total = log_data.logsumexp(dim=1, keepdim=True)
        return torch.cat([torch.logaddexp(log_data + stay, total + replace), total + mask], dim=1)

    def arrival(self, ordinary: torch.Tensor, masked: torch.Tensor, t: int, since: int = -1) -> torch.Tensor:
        """Return log q(x_t | x_since = k) for every ordinary class k, (batch, classes - 1, positions).

        Args:
            ordinary, masked: what each token of x_t is, see `told_apart`.
        """
        _, replace, mask, either = self.shares(t, since)
        return torch.where(masked, mask, torch.where(ordinary, either, replace))

    def posterior(
        self, log_data: torch.Tensor, tokens: torch.Tensor, t: int, *, before: int | None = None
    ) -> torch.Tensor:
        """Return log p(x_before | x_t = tokens), the sum over x_0 of q(x_before | x_t, x_0) p(x_0): eq. 11.

        Args:
            log_data: log p(x_0), shape (batch, classes - 1, positions).
            tokens: x_t, shape (batch, positions).
            before: an earlier time, t - 1 if None; further ones make longer strides (section 4.3).

        Raises:
            InputError: when the two times are not in order or outside the process.
        """
        before = t - 1 if before is None else before
        if not -1 <= before < t < self.steps:
            raise InputError(f"A step from {t} to {before} is outside the process, {self.steps - 1} ... -1.")
        ordinary, masked = told_apart(tokens, self.classes)
        back = self.forward(log_data - self.arrival(ordinary, masked, t), before)
        stays_masked = torch.where(masked, 0.0, ZERO)
        return back + torch.cat([self.arrival(ordinary, masked, t, before), stays_masked], dim=1)
