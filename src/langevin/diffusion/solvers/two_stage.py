"""Solvers that ask the network twice per step: Heun's method, the midpoint method, and the midpoint method of an SDE.

Along a grid the probability flow moves a sample by dx = x_0 d_alpha + eps d_sigma. With alpha = 1 that is
dx = eps d_sigma (Karras et al. 2022, 2206.00364, eq. 1 with sigma(t) = t), on straight paths dx = (eps - x_0) d_sigma
(Lipman et al. 2022, 2210.02747). All rows are written in x_0, with eps = (x - alpha * x_0) / sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from ..grid import Grid
from ..process import Level
from ..rows import Row
from .first_order import euler, posterior_deviation

AtRatio = Callable[[float], Level]


def single(a: Level, b: Level, *, eta: float = 0.0, strength: float = 1.0) -> Row:
    """Return the first-order row a -> b; with `eta` it draws `strength` times the noise that it leaves room for."""
    deviation = eta * posterior_deviation(a, b)
    sample, data = euler(a, b, deviation=deviation)
    return Row(a, b, sample=sample, outputs=(data,), noise=deviation * strength or None)


class TwoStage:
    """Base: two rows for every step but the last, which is of first order, so n steps are 2n - 1 network calls.

    A run that begins between the two rows of a step walks to its end by a first-order row.
    """

    eta: float = 0.0
    strength: float = 1.0
    wants: Literal["x0"] = "x0"

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        """Return the rows of the network calls from number `begin` on."""
        rows = [row for a, b in pairwise(grid[:-1]) for row in self.step(a, b)]
        rows.append(self.single(grid[-2], grid[-1]))
        if begin % 2:
            rows[begin] = self.single(rows[begin].level, rows[begin].after)
        return tuple(rows[begin:])

    def single(self, a: Level, b: Level) -> Row:
        """Return the first-order row a -> b."""
        return single(a, b, eta=self.eta, strength=self.strength)

    def step(self, a: Level, b: Level) -> tuple[Row, Row]:
        """Return the two rows of the step a -> b."""
        raise NotImplementedError


@dataclass(frozen=True)
class Heun(TwoStage):
    """An Euler step and its correction by the mean of both slopes: Karras et al. 2022 (2206.00364), algorithm 1."""

    def step(self, a: Level, b: Level) -> tuple[Row, Row]:
        data, noise = (b.alpha - a.alpha) / 2, (b.sigma - a.sigma) / 2
        correct = Row(
            b,
            b,
            saved=1 + noise / a.sigma,
            sample=noise / b.sigma,
            outputs=(data - noise * b.alpha / b.sigma, data - noise * a.alpha / a.sigma),
        )
        return replace(self.single(a, b), save=True, keep=(0,)), correct


@dataclass(frozen=True)
class Midpoint(TwoStage):
    """DPM-Solver-2: the slope half way in log(sigma / alpha), over the whole step (2206.00927, algorithm 1).

    Attributes:
        at: returns the level with a given sigma / alpha.
        eta: share of the posterior's standard deviation that is drawn afresh; the rest of the step is the ODE's.
    """

    at: AtRatio
    eta: float = 0.0

    def step(self, a: Level, b: Level) -> tuple[Row, Row]:
        deviation = self.eta * posterior_deviation(a, b)
        end = Level(b.t, b.alpha, math.sqrt(b.sigma**2 - deviation**2))
        # fully ancestral steps aim at sigma_b^2 / sigma_a, so their middle is b
        middle = b if self.eta == 1 else self.at(math.sqrt(a.ratio * end.ratio))
        noise = (end.sigma - a.sigma) / middle.sigma
        data = end.alpha - a.alpha - middle.alpha * noise
        finish = Row(middle, b, saved=1.0, sample=noise, outputs=(data,), noise=deviation or None)
        return replace(single(a, middle), save=True), finish


@dataclass(frozen=True)
class BrownianMidpoint(TwoStage):
    """DPM-Solver++ (2S) of the reverse SDE on a Brownian path: Lu et al. 2022 (2211.01095), algorithm 1.

    The first row goes from a to the middle m, half way in log(sigma / alpha), by x_0(a); the second one from a to b by
    x_0(m). The noise of both is one path W with independent increments in sigma / alpha: the first draws z_1 over
    [a, m], the second z_2 over [m, b], and needs (W_b - W_a) / sqrt(a - b) = w_1 z_1 + w_2 z_2. What z_1 was follows
    from the sample at m, which is linear in it, so the second row draws only z_2.

    Attributes:
        at: returns the level with a given sigma / alpha.
        eta: share of the posterior's standard deviation that is drawn afresh.
        strength: factor of the noise.
    """

    at: AtRatio
    eta: float = 1.0
    strength: float = 1.0

    def step(self, a: Level, b: Level) -> tuple[Row, Row]:
        middle = self.at(math.sqrt(a.ratio * b.ratio))
        first = replace(self.single(a, middle), save=True, keep=(0,))
        share = (a.ratio - middle.ratio) / (a.ratio - b.ratio)
        deviation = self.eta * posterior_deviation(a, b)
        sample, data = euler(a, b, deviation=deviation)
        carried = 0.0
        if first.noise:
            carried = self.strength * deviation * math.sqrt(share) / first.noise
        second = Row(
            middle,
            b,
            saved=sample - carried * first.sample,
            sample=carried,
            outputs=(data, -carried * first.outputs[0]),
            noise=self.strength * deviation * math.sqrt(1 - share) or None,
        )
        return first, second
