"""The first-order step: DDIM, Euler, ancestral Euler and DDPM are one row with different amounts of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..grid import Grid
from ..process import Level
from ..rows import Row
from .strength import Strength, strength


def posterior_deviation(a: Level, b: Level) -> float:
    """Return the standard deviation of q(x_b | x_a, x_0): Song et al. 2020 (2010.02502), eq. 16 with eta = 1.

    On variance-preserving levels it is DDPM's posterior (2006.11239, eq. 7), on exploding levels ancestral sampling's
    sigma_up, and for data prediction SDE-DPM-Solver++'s (2211.01095, eq. 18).
    """
    if b.sigma == 0 or b.ratio >= a.ratio:
        return 0.0
    return b.sigma * math.sqrt(max(1.0 - (b.sigma * a.alpha / (b.alpha * a.sigma)) ** 2, 0.0))


def euler(a: Level, b: Level, *, deviation: float = 0.0) -> tuple[float, float]:
    """Return the coefficients of x and x_0 of the step a -> b that leaves room for noise of the given deviation.

    x_b = alpha_b * x_0 + sqrt(sigma_b^2 - deviation^2) * eps with eps = (x_a - alpha_a * x_0) / sigma_a.
    """
    k = math.sqrt(max(b.sigma**2 - deviation**2, 0.0)) / a.sigma
    return k, b.alpha - a.alpha * k


@dataclass(frozen=True)
class Churn:
    """Noise raised before each step: Karras et al. 2022 (2206.00364), algorithm 2.

    Attributes:
        amount, low, high, noise: the paper's S_churn, S_tmin, S_tmax and S_noise; `amount` may differ per step.
        read_raised: read the output at the raised level instead of where the network was asked.
    """

    amount: Strength = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0
    read_raised: bool = True

    def raised(self, level: Level, steps: int, index: int | None = None) -> Level:
        """Return the level to which `level`, that of step `index`, is raised in a run of `steps`."""
        return Level(level.t, level.alpha, level.sigma * (1 + self.gamma(level, steps, index)))

    def gamma(self, level: Level, steps: int, index: int | None = None) -> float:
        """Return by which part of itself the noise of `level` is raised."""
        amount = strength("churn", self.amount, index, steps, level)
        return min(amount / steps, math.sqrt(2) - 1) if self.low <= level.sigma <= self.high else 0.0


@dataclass(frozen=True)
class FirstOrder:
    """One Euler step per level: Song et al. 2020 (2010.02502), eq. 12.

    Attributes:
        eta: share of the posterior's standard deviation that is drawn afresh; 0 is DDIM and Euler, 1 ancestral. It may
            differ per step, and a step of 0 draws nothing.
        split: keep the network's own eps beside a bounded x_0, as DDIM does; otherwise eps follows from x_0.
        churn: noise raised before each step, or None.
    """

    eta: Strength = 0.0
    split: bool = False
    churn: Churn | None = None
    wants: Literal["x0"] = "x0"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        count = len(grid) - 1
        return tuple(self.row(grid[k], grid[k + 1], count, k) for k in range(begin, count))

    def row(self, a: Level, b: Level, steps: int, index: int | None = None) -> Row:
        """Return the row of the step a -> b, number `index` in a run of `steps`."""
        hat = self.churn.raised(a, steps, index) if self.churn else a
        lift = None
        if self.churn and hat.sigma > a.sigma:
            lift = self.churn.noise * math.sqrt(hat.sigma**2 - a.sigma**2)
        eta = strength("eta", self.eta, index, steps, a)
        deviation = eta * posterior_deviation(hat, b)
        noise = deviation if eta else None
        read = hat if self.churn and self.churn.read_raised else None
        if self.split:
            direction = math.sqrt(max(b.sigma**2 - deviation**2, 0.0))
            return Row(a, b, outputs=(b.alpha,), direction=direction, noise=noise, lift=lift, read=read)
        sample, data = euler(hat, b, deviation=deviation)
        return Row(a, b, sample=sample, outputs=(data,), noise=noise, lift=lift, read=read)


@dataclass(frozen=True)
class Posterior:
    """Ancestral sampling with a chosen variance: Ho et al. 2020 (2006.11239), algorithm 2.

    The mean is that of q(x_b | x_a, x_0) (eq. 7). Noise is drawn wherever t > 0, and never added in the last step.

    Attributes:
        variance: "fixed_small" (the posterior's own), "fixed_large" (beta_t), "learned" or "learned_range" (the
            network's).
    """

    variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "fixed_small"
    wants: Literal["x0"] = "x0"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        last = len(grid) - 2
        return tuple(self.row(grid[k], grid[k + 1], last=k == last) for k in range(begin, last + 1))

    def row(self, a: Level, b: Level, *, last: bool) -> Row:
        """Return the row of the step a -> b."""
        small = posterior_deviation(a, b)
        sample, data = euler(a, b, deviation=small)
        beta = 1.0 - (a.alpha / b.alpha) ** 2
        noise = None if a.t <= 0 else 0.0 if last else math.sqrt(beta) if self.variance == "fixed_large" else small
        spread = None
        if self.variance.startswith("learned"):
            noise = 1.0 if noise else noise
            spread = (math.log(max(small**2, 1e-20)), math.log(beta))
        return Row(a, b, sample=sample, outputs=(data,), noise=noise, spread=spread)
