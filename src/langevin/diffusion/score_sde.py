"""Score-based models in continuous time: Song et al. 2021 (2011.13456), their two processes.

Times run from 1 (noise) to almost 0 (data). Networks of this family predict the score, the gradient of the log density,
which is -eps / sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .grid import Ask, Grid, check_descending, check_levels
from .process import Level, preserving

CLEAN = Level(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class ExplodingSDE:
    """The variance-exploding process, sigma(t) = low * (high / low)^t: section 3.4, eq. 30.

    Attributes:
        low, high: the noise levels at t = 0 and t = 1.
    """

    low: float = 0.01
    high: float = 1348.0

    def level(self, t: float) -> Level:
        """Return the level at time t."""
        return Level(t, 1.0, self.low * (self.high / self.low) ** t)

    def grid(self, count: int, last: float) -> Grid:
        """Return `count` levels evenly spaced in log sigma, at times from 1 to `last`, and clean data."""
        levels = zip(np.linspace(1.0, last, count), np.geomspace(self.high, self.low, count), strict=True)
        return (*(Level(float(t), 1.0, float(sigma)) for t, sigma in levels), CLEAN)

    def at(self, ratio: float) -> Level:
        """Return the level whose sigma / alpha is `ratio`."""
        return Level(math.log(ratio / self.low) / math.log(self.high / self.low), 1.0, ratio)


@dataclass(frozen=True)
class PreservingSDE:
    """The variance-preserving process with beta(t) linear: section 3.4, eq. 32 and 33.

    Attributes:
        beta_min, beta_max: the rates of noise at t = 0 and t = 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: float) -> float:
        """Return the rate of noise at time t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def level(self, t: float) -> Level:
        """Return the level at time t: alpha is exp of minus half the integral of beta."""
        return preserving(t, math.sqrt(math.expm1(0.5 * t * (self.beta_min + self.beta(t)))))

    def grid(self, count: int, last: float) -> Grid:
        """Return the levels at `count` times evenly spaced from 1 to `last`, and clean data."""
        return (*(self.level(float(t)) for t in np.linspace(1.0, last, count)), CLEAN)

    def at(self, ratio: float) -> Level:
        """Return the level whose sigma / alpha is `ratio`; its time solves a quadratic equation."""
        rise, total = self.beta_max - self.beta_min, 2 * math.log1p(ratio**2)
        t = total / (self.beta_min + math.sqrt(self.beta_min**2 + rise * total))
        return preserving(t, ratio)


def visited(process: ExplodingSDE | PreservingSDE, ask: Ask, steps: int, last: float) -> Grid:
    """Return the levels of a run, its end included; `steps` of them down to the time `last` if nothing else is asked.

    Raises:
        InputError: for timesteps or sigmas that do not descend, or timesteps outside (0, 1].
    """
    if ask.timesteps is not None:
        return (*map(process.level, check_descending("timesteps", ask.timesteps, low=1e-9, high=1.0)), CLEAN)
    if ask.sigmas is not None:
        return tuple(process.at(sigma) if sigma else CLEAN for sigma in check_levels(ask.sigmas))
    return process.grid(ask.count or steps, last)


def along(x: torch.Tensor, a: float, b: float, *slopes: torch.Tensor) -> torch.Tensor:
    """Return x moved from noise level a to b along the mean of `slopes`: Karras et al. 2022 (2206.00364), algorithm 2.

    Args:
        slopes: d x / d sigma, which is eps: that at a for Euler's step, those at a and b for Heun's.
    """
    for slope in slopes:
        x = torch.add(x, slope, alpha=(b - a) / len(slopes))
    return x
