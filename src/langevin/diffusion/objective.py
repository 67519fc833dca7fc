"""What a network is trained to say about a noised sample, and what a mistake costs.

A sample at a level (alpha, sigma) is x = alpha * x_0 + sigma * eps. Every kind of output is linear in (x, output), see
`prediction`: x_0 = a * x + b * output. So an error of the output is 1 / b times that of x_0, and a weighting of the
error of x_0 by the signal-to-noise ratio becomes one of the output's error by the factor b^2, whatever the kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError, InputError, check_choice
from .prediction import KINDS, Prediction
from .process import Level, TableProcess, flow

LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "mse": lambda error, zero, _: F.mse_loss(error, zero, reduction="none"),
    "huber": lambda error, zero, c: 2 * c * (torch.sqrt(error**2 + c**2) - c),
    "smooth_l1": lambda error, zero, c: 2 * (torch.sqrt(error**2 + c**2) - c),
}
"""Name of a loss -> its value for an error; `huber` and `smooth_l1` are pseudo-Huber losses that bend at c."""

WEIGHTINGS: dict[str, Callable[[float, float], float]] = {
    "min_snr": min,
    "debiased": lambda snr, _: math.sqrt(snr),
}
"""Name of a weighting -> the weight of the squared error of x_0 at a signal-to-noise ratio, with its parameter gamma.

min_snr: min(snr, gamma), Hang et al. 2023 (2303.09556), eq. 9. debiased: sqrt(snr), which for a prediction of the noise
is 1 / sqrt(snr), Yu et al. 2023 (2310.08442), eq. 10.
"""


class Levels(NamedTuple):
    """The levels of a batch.

    Attributes:
        t: what the network is told, (batch,).
        row: of the table of levels, (batch,).
        alpha, sigma: float32, (batch,).
    """

    t: Tensor
    row: Tensor
    alpha: Tensor
    sigma: Tensor


def rows_of(vector: Tensor, like: Tensor) -> Tensor:
    """Return one number per row so that it multiplies the rows of a tensor, in that tensor's type."""
    return vector.to(like.dtype).reshape(-1, *(1 for _ in like.shape[1:]))


class Noising:
    """The levels that a network is trained at, as a table: those of a trained process, or fine ones of straight paths.

    Args:
        levels: from clean to noisy.
    """

    def __init__(self, levels: list[Level]) -> None:
        self.levels = levels
        self.alpha = torch.tensor([level.alpha for level in levels], dtype=torch.float64)
        self.sigma = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
        self.times = torch.tensor([level.t for level in levels])

    @classmethod
    def of(cls, process: TableProcess) -> Noising:
        """Return the levels of a trained table, told by their number."""
        return cls([process.level(t) for t in range(len(process))])

    @classmethod
    def straight(cls, count: int = 1000, *, shift: float = 1.0) -> Noising:
        """Return levels of straight paths, told by 1000 sigma; `shift` means more noise (2403.03206, eq. 23)."""
        plain = [(k + 1) / count for k in range(count)]
        return cls([flow(1000 * s, s) for s in (shift * s / (1 + (shift - 1) * s) for s in plain)])

    def __len__(self) -> int:
        return len(self.levels)

    def at(self, index: Tensor, device: torch.device | str = "cpu") -> Levels:
        """Return the levels with these numbers, on a device."""
        picked = (self.times[index], index, self.alpha[index].float(), self.sigma[index].float())
        return Levels(*(column.to(device) for column in picked))


@dataclass(frozen=True)
class Objective:
    """What the network says, and what a mistake costs.

    Attributes:
        kind: what it predicts, a name in `prediction.KINDS`.
        loss: a name in `LOSSES`.
        bend: where the pseudo-Huber losses go from square to straight.
        weighting: a name in `WEIGHTINGS`, or None to weigh all levels alike.
        gamma: parameter of the weighting.
        offset: share of noise that is the same over a whole channel (Guttenberg 2023).
        perturbation: share of more noise in the sample that the target does not know of (2301.11706, eq. 7).
    """

    kind: str = "epsilon"
    loss: str = "mse"
    bend: float = 0.1
    weighting: str | None = None
    gamma: float = 5.0
    offset: float = 0.0
    perturbation: float = 0.0

    def __post_init__(self) -> None:
        check_choice("prediction_type", self.kind, KINDS)
        check_choice("loss", self.loss, LOSSES)
        if self.weighting is not None:
            check_choice("weighting", self.weighting, WEIGHTINGS)
        for name in ("bend", "gamma"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        for name in ("offset", "perturbation"):
            if getattr(self, name) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 0.")

    def weights(self, noising: Noising) -> Tensor:
        """Return the weight of the output's error at every level, float32, (levels,).

        Raises:
            ConfigError: when outputs of this kind say nothing about the data at a level.
        """
        prediction = Prediction(self.kind)
        for level in noising.levels:
            prediction.check(level)
        if self.weighting is None:
            return torch.ones(len(noising))
        weigh = WEIGHTINGS[self.weighting]
        ratios = [(level.alpha / level.sigma) ** 2 for level in noising.levels]
        gains = [self.gain(level) ** 2 for level in noising.levels]
        found = [weigh(ratio, self.gamma) * gain for ratio, gain in zip(ratios, gains, strict=True)]
        return torch.tensor(found, dtype=torch.float64).float()

    def gain(self, level: Level) -> float:
        """Return how many times an error of the output is one of x_0."""
        (_, of_output), _ = Prediction(self.kind).pairs(level)
        return of_output

    def noise(self, drawn: Tensor, channels: Tensor | None = None) -> Tensor:
        """Return the noise of a batch from normal draws in its shape, and for `offset` from draws (batch, channels)."""
        if not self.offset:
            return drawn
        if channels is None:
            raise ConfigError("Noise with an offset needs one more draw per picture and channel.")
        return drawn + self.offset * channels.reshape(*channels.shape, *(1 for _ in drawn.shape[2:]))

    def noised(self, x0: Tensor, eps: Tensor, levels: Levels, more: Tensor | None = None) -> Tensor:
        """Return the samples that the network sees; `more` are the draws of `perturbation`."""
        if self.perturbation:
            if more is None:
                raise ConfigError("Perturbed inputs need one more draw in the shape of the batch.")
            eps = eps + self.perturbation * more
        return rows_of(levels.alpha, x0) * x0 + rows_of(levels.sigma, x0) * eps

    def target(self, x0: Tensor, eps: Tensor, levels: Levels) -> Tensor:
        """Return what the network should say."""
        alpha, sigma = rows_of(levels.alpha, x0), rows_of(levels.sigma, x0)
        if self.kind == "epsilon":
            return eps
        if self.kind == "sample":
            return x0
        if self.kind == "v_prediction":
            return (alpha * eps - sigma * x0) / torch.hypot(alpha, sigma)
        if self.kind == "flow_prediction":
            return eps - x0
        return -eps / sigma if self.kind == "score" else -eps

    def cost(self, output: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the mean loss of every row, unweighted, in float32, (batch,).

        Args:
            where: 1 for the places that count and 0 for the others, (batch, 1, ...).
        """
        error = output.float() - target.float()
        costs = LOSSES[self.loss](error, torch.zeros_like(error), self.bend)
        if where is None:
            return costs.flatten(1).mean(1)
        where = where.expand_as(costs)
        return (costs * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)
