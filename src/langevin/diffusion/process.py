"""Noising processes: how much data and how much noise a sample holds at each time.

One formula covers variance preserving, variance exploding and flow processes,

    x_t = alpha_t * x_0 + sigma_t * eps,        eps ~ N(0, I),

and a process is the map from a time t to its `Level` (alpha, sigma). Everything here is host arithmetic in float64;
only the table of a trained process starts from float32, because that is the table the published networks saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..core.errors import InputError, check_choice

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


# ---- betas ---------------------------------------------------------------------------------------------------------


def _linear(count: int, start: float, end: float) -> torch.Tensor:
    """Ho et al. 2020 (2006.11239), section 4."""
    return torch.linspace(start, end, count, dtype=torch.float32, device="cpu")


def _scaled_linear(count: int, start: float, end: float) -> torch.Tensor:
    """Linear in sqrt(beta): Rombach et al. 2022 (2112.10752)."""
    return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32, device="cpu") ** 2


def _sigmoid(count: int, start: float, end: float) -> torch.Tensor:
    """A logistic curve over [-6, 6] between the two ends: Xu et al. 2022 (2203.02923)."""
    return torch.sigmoid(torch.linspace(-6, 6, count, device="cpu")) * (end - start) + start


def from_alpha_bar(alpha_bar: Callable[[float], float], count: int, *, largest: float = 0.999) -> torch.Tensor:
    """Return the betas whose cumulative product follows `alpha_bar` on [0, 1]: Nichol & Dhariwal 2102.09672, eq. 17."""
    bars = [alpha_bar(k / count) for k in range(count + 1)]
    betas = [min(1.0 - after / before, largest) for before, after in pairwise(bars)]
    return torch.tensor(betas, dtype=torch.float32, device="cpu")


def _cosine_bar(t: float, offset: float = 0.008) -> float:
    """Nichol & Dhariwal 2021 (2102.09672), eq. 17, free of scale; `offset` keeps the first beta from vanishing."""
    angle = (t + offset) / (1 + offset) * math.pi / 2
    return math.cos(angle) ** 2


def _laplace_bar(t: float) -> float:
    """The log signal-to-noise ratio follows a Laplace distribution: Hang et al. 2024 (2407.03297)."""
    middle = t - 0.5
    lam = math.copysign(0.5, middle) * math.log1p(1e-6 - 2 * abs(middle))
    return 1.0 / math.sqrt(1.0 + math.exp(-lam))


BETAS: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda count, start, end: from_alpha_bar(_cosine_bar, count),
    "sigmoid": _sigmoid,
    "laplace": lambda count, start, end: from_alpha_bar(_laplace_bar, count),
}


def betas(
    schedule: str = "linear",
    count: int = 1000,
    *,
    start: float = 0.0001,
    end: float = 0.02,
    trained: Sequence[float] | np.ndarray | None = None,
    zero_terminal_snr: bool = False,
) -> torch.Tensor:
    """Return the float32 betas of a discrete process, shape (count,).

    Args:
        schedule: a name in `BETAS`.
        trained: the betas themselves; then `schedule`, `count`, `start` and `end` are not used.
        zero_terminal_snr: rescale so that the last step holds no data at all.

    Raises:
        InputError: for an unknown schedule, or trained betas outside (0, 1].
    """
    if trained is not None:
        values = torch.as_tensor(np.asarray(trained), dtype=torch.float32, device="cpu")
        if values.ndim != 1 or not bool(((values > 0) & (values <= 1)).all()):
            raise InputError("`trained_betas` must be a flat list of numbers in (0, 1].")
    else:
        check_choice("beta_schedule", schedule, BETAS)
        values = BETAS[schedule](count, start, end)
    return rescale_zero_terminal_snr(values) if zero_terminal_snr else values


def rescale_zero_terminal_snr(values: torch.Tensor) -> torch.Tensor:
    """Shift and stretch sqrt(alpha_bar) to end at 0 and keep its start: Lin et al. 2305.08891, algorithm 1."""
    root = torch.cumprod(1.0 - values, dim=0).sqrt()
    stretch = root[0] / (root[0] - root[-1])
    bar = ((root - root[-1]) * stretch) ** 2
    return 1.0 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
