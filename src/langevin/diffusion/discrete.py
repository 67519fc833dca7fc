"""Diffusion over tokens: Gu et al. 2022 (2111.14822), mask-and-replace, after Austin et al. 2021 (2107.03006).

In a step a token stays with probability a, becomes each of the N ordinary tokens with b, and the mask with c, where
a + N * b + c = 1; a masked token stays masked. Products of such steps have the same form, so a process is three numbers
per step and three per product of steps, kept as float64 logarithms. Probabilities are tensors of shape
(batch, classes, positions) and tokens of (batch, positions); the mask is the last class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..core.errors import ConfigError, InputError

ZERO = float(np.log(1e-30))
"""The logarithm that stands for probability 0."""


def index_to_log_onehot(tokens: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the logarithm of the one-hot code of `tokens`, (batch, classes, positions), `ZERO` where it is not."""
    here = tokens.unsqueeze(1) == torch.arange(classes, device=tokens.device).reshape(
        1, -1, *(1 for _ in tokens.shape[1:])
    )
    return torch.where(here, 0.0, ZERO)


def gumbel_argmax(log_probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return a token for each position, drawn with the given log probabilities (free of a constant).

    Args:
        uniform: draws from [0, 1) in the same shape.
    """
    gumbel = -torch.log(-torch.log(uniform + 1e-30) + 1e-30)
    return (log_probabilities + gumbel).argmax(dim=1)


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
        stay, mask = (
            np.append(np.linspace(*ends, self.steps), rest) for ends, rest in ((self.alpha, 1), (self.gamma, 0))
        )
        return self.logarithms(stay, mask)

    @cached_property
    def single(self) -> np.ndarray:
        """Logarithms of (a, b, c) of step t alone, shape (3, steps)."""
        stay, _, mask = np.exp(self.products)
        before_stay, before_mask = np.roll(stay, 1)[:-1], np.roll(mask, 1)[:-1]
        return self.logarithms(stay[:-1] / before_stay, 1.0 - (1.0 - mask[:-1]) / (1.0 - before_mask))

    def logarithms(self, stay: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the logarithms of (a, b, c) for given a and c."""
        replace = np.maximum(1.0 - stay - mask, 0.0) / (self.classes - 1)
        with np.errstate(divide="ignore"):
            return np.log(np.stack([stay, replace, mask]))

    def check(self, t: int) -> int:
        """Return `t`; raise InputError when the process has no such step."""
        if not 0 <= t < self.steps:
            raise InputError(f"Timestep {t} is outside 0 ... {self.steps - 1}.")
        return t

    def forward(self, log_data: torch.Tensor, t: int) -> torch.Tensor:
        """Return log q(x_t) for log probabilities of the data over the ordinary tokens; t = -1 is the data itself.

        Args:
            log_data: shape (batch, classes - 1, positions); need not be normalised.
        """
        stay, replace, mask = (float(v) for v in self.products[:, t])
        total = log_data.logsumexp(dim=1, keepdim=True)
        return torch.cat([torch.logaddexp(log_data + stay, total + replace), total + mask], dim=1)

    def arrival(self, tokens: torch.Tensor, t: int, *, cumulative: bool) -> torch.Tensor:
        """Return log q(x_t = tokens | x = k) for every ordinary class k of x_0 (cumulative) or of x_{t - 1}."""
        stay, replace, mask = (float(v) for v in (self.products if cumulative else self.single)[:, t])
        known = index_to_log_onehot(tokens, self.classes)[:, :-1]
        return torch.where(
            tokens.unsqueeze(1) == self.classes - 1, mask, torch.where(known == 0, np.logaddexp(stay, replace), replace)
        )

    def posterior(self, log_data: torch.Tensor, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """Return log p(x_{t - 1} | x_t = tokens), the sum over x_0 of q(x_{t - 1} | x_t, x_0) p(x_0): eq. 11.

        Args:
            log_data: log p(x_0), shape (batch, classes - 1, positions).
            tokens: x_t, shape (batch, positions).
        """
        self.check(t)
        before = self.forward(log_data - self.arrival(tokens, t, cumulative=True), t - 1)
        stays_masked = torch.where(tokens.unsqueeze(1) == self.classes - 1, 0.0, ZERO)
        return before + torch.cat([self.arrival(tokens, t, cumulative=False), stays_masked], dim=1)
