"""Noising processes: how much data and how much noise a sample holds at each time.

One formula covers variance preserving, variance exploding and flow processes,

    x_t = alpha_t * x_0 + sigma_t * eps,        eps ~ N(0, I),

and a process is the map from a time t to its `Level` (alpha, sigma), host numbers in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Time = int | float


@dataclass(frozen=True, slots=True)
class Level:
    """How much data (`alpha`) and noise (`sigma`) a sample holds; `t` is the timestep that the network is told."""

    t: Time
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma); infinite at the two ends."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of the same sample scaled to alpha = 1."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def norm(self) -> float:
        """Root mean square of a sample at this level when the data has unit variance."""
        return self.spread(1.0)

    def spread(self, data: float) -> float:
        """Return the root mean square of a sample at this level when the data has the standard deviation `data`."""
        return math.hypot(self.alpha * data, self.sigma)

    def exploding(self) -> Level:
        """Return the level of the same sample divided by alpha: x = x_0 + (sigma / alpha) * eps."""
        return Level(self.t, 1.0, self.ratio)


def preserving(t: Time, ratio: float) -> Level:
    """Return the variance-preserving level (alpha^2 + sigma^2 = 1) whose sigma / alpha is `ratio`."""
    if math.isinf(ratio):
        return Level(t, 0.0, 1.0)
    alpha = 1.0 / math.hypot(1.0, ratio)
    return Level(t, alpha, alpha * ratio)


def flow(t: Time, sigma: float) -> Level:
    """Return the level of a straight path from data to noise: x = (1 - sigma) * x_0 + sigma * eps."""
    return Level(t, 1.0 - sigma, sigma)


def flow_sigma(ratio: Any) -> Any:
    """Return the sigma of straight paths at the noise level sigma / alpha = `ratio`, a number or an array."""
    return ratio / (1 + ratio)


def angular(sigma: float) -> Level:
    """Return the variance-preserving level of the given sigma, whose time is its angle in quarter turns."""
    return Level(math.asin(sigma) * 2 / math.pi, math.sqrt(1.0 - sigma**2), sigma)


def between(a: Level, b: Level, share: float, place: Callable[[Time], Level] | None = None) -> Level:
    """Return the level a part of the way from `a` down to `b`, evenly in the timestep, which stays whole where it was.

    On straight paths alpha and sigma follow the timestep. Elsewhere `place` says the level of a timestep, or else
    log(sigma / alpha) follows the timestep; where that is infinite at one end, there is nothing between, and `a` is
    returned.
    """
    straight = a.alpha < 1.0 and all(abs(level.alpha + level.sigma - 1.0) <= 1e-6 for level in (a, b))
    if not straight and place is None and (b.ratio == 0 or math.isinf(a.ratio)):
        return a
    last = b.t if place is None else max(b.t, 0)
    t = a.t + share * (last - a.t)
    if isinstance(a.t, int) and isinstance(b.t, int):
        t = round(t)
        share = (t - a.t) / (last - a.t) if last != a.t else share
    if straight:
        return Level(t, a.alpha + share * (b.alpha - a.alpha), a.sigma + share * (b.sigma - a.sigma))
    found = place(t) if place is not None else preserving(t, math.exp(-a.lam + share * (a.lam - b.lam)))
    return found.exploding() if a.alpha == b.alpha == 1.0 else found


class TableProcess:
    """A variance-preserving process known at whole training steps by its cumulative products of 1 - beta.

    Between whole steps sigma / alpha is interpolated linearly in t, and t linearly in log(sigma / alpha).
    """

    def __init__(self, alphas_cumprod: Sequence[float] | np.ndarray) -> None:
        self.alphas_cumprod = np.asarray(alphas_cumprod, dtype=np.float64)
        with np.errstate(divide="ignore"):
            self.ratios = np.sqrt((1.0 - self.alphas_cumprod) / self.alphas_cumprod)

    @property
    def lams(self) -> np.ndarray:
        """Half the log signal-to-noise ratio of every training step, see `Level.lam`."""
        with np.errstate(divide="ignore"):
            return -np.log(self.ratios)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def ratio(self, t: Time) -> float:
        """Return sigma / alpha at time t; times outside the table take its nearest end."""
        if float(t).is_integer():
            return float(self.ratios[min(max(int(t), 0), len(self) - 1)])
        return float(np.interp(t, np.arange(len(self)), self.ratios))

    def level(self, t: Time) -> Level:
        """Return the level at time t."""
        return preserving(t, self.ratio(t))

    def time(self, ratio: float) -> float:
        """Return the time at which sigma / alpha is `ratio`; ratios outside the table take its nearest end."""
        with np.errstate(divide="ignore"):
            logs = np.log(np.maximum(self.ratios, 1e-300))
        return float(np.interp(math.log(max(ratio, 1e-10)), logs, np.arange(len(self))))


def noised(source: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
    """Return alpha * source + sigma * noise."""
    return torch.add(source if level.alpha == 1.0 else level.alpha * source, noise, alpha=level.sigma)


def noised_each(source: torch.Tensor, noise: torch.Tensor, levels: Sequence[Level]) -> torch.Tensor:
    """Return row k of the batch noised to `levels[k]`; a single level serves every row."""
    table = torch.tensor([(level.alpha, level.sigma) for level in levels], dtype=torch.float64).T
    return noised_at(table, torch.arange(len(levels)), source, noise)


def noised_at(table: torch.Tensor, positions: torch.Tensor, source: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return row k noised to the level whose alpha and sigma stand in column `positions[k]` of `table`."""
    alpha, sigma = gathered(table, positions, source)
    return alpha * source + sigma * noise


def velocity_at(
    table: torch.Tensor, positions: torch.Tensor, source: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return the target of v-prediction at the same levels, alpha * eps - sigma * x_0 (Salimans & Ho 2202.00512)."""
    alpha, sigma = gathered(table, positions, source)
    return alpha * noise - sigma * source


def gathered(table: torch.Tensor, positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the columns of `table`, shape (n, steps), at `positions`, shaped to broadcast against `like`."""
    shape = (-1, *(1 for _ in like.shape[1:])) if positions.ndim else ()
    return table.to(like.dtype).to(like.device)[:, positions.to(like.device).long()].reshape(len(table), *shape)
