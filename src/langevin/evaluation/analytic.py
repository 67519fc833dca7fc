"""Data whose diffusion is known exactly, so that a sampler's errors are its own and not a network's.

With x = alpha * x_0 + sigma * eps and x_0 from a Gaussian or a mixture of Gaussians, the best estimate E[x_0 | x], the
score and the probability flow (Song et al. 2021, 2011.13456, eq. 13) need no training. All arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import InputError
from ..diffusion.prediction import Prediction
from ..diffusion.process import Level

CLEAN = Level(-1, 1.0, 0.0)
"""The end of a process: data without noise."""
FAR = 1e5
"""sigma / alpha from which on a sample is taken as its data's mean plus noise when the flow needs a finite level."""


class Known:
    """Base of data sets with a known diffusion; a subclass gives `estimate`, `noise`, `transport` and `draw`."""

    def estimate(self, x: Tensor, level: Level) -> Tensor:
        """Return E[x_0 | x] at `level`."""
        raise NotImplementedError

    def noise(self, x: Tensor, level: Level) -> Tensor:
        """Return E[eps | x] at `level`, which is -sigma times the score."""
        raise NotImplementedError

    def transport(self, x: Tensor, a: Level, b: Level) -> Tensor:
        """Return where the probability flow carries x from level `a` to level `b`."""
        raise NotImplementedError

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw data of `shape`, float64."""
        raise NotImplementedError

    def score(self, x: Tensor, level: Level) -> Tensor:
        """Return the gradient of the log density of x at `level`; needs sigma > 0."""
        return -self.noise(x, level) / level.sigma

    def noised(self, shape: Sequence[int], level: Level, generator: torch.Generator) -> Tensor:
        """Draw samples from the distribution at `level`, float64."""
        data = self.draw(shape, generator)
        return level.alpha * data + level.sigma * torch.randn(data.shape, generator=generator, dtype=torch.float64)

    def output(
        self, x: Tensor, level: Level, prediction: Prediction, *, jump: tuple[float, float, Level] | None = None
    ) -> Tensor:
        """Return what a perfect network of the given kind of prediction returns, in the dtype of x.

        Args:
            jump: weights of x and of x_0 in the step, and a level: the network was distilled so that the two lead to
                where the probability flow leads at that level. None: it predicts the mean.
        """
        wide = x.double()
        if jump is None:
            data, noise = self.estimate(wide, level), self.noise(wide, level)
        else:
            of_x, of_data, target = jump
            data = (self.transport(wide, level, target) - of_x * wide) / of_data
            noise = (wide - level.alpha * data) / level.sigma if level.sigma > 0 else torch.zeros_like(wide)
        return as_output(wide, data, noise, level, prediction).to(x.dtype)


def as_output(x: Tensor, data: Tensor, noise: Tensor, level: Level, prediction: Prediction) -> Tensor:
    """Return the network output from which `prediction` reads `data` and `noise`.

    Both are linear in (x, output); the pair that weighs the output more is solved for it.
    """
    (a, b), (c, d) = prediction.pairs(level)
    candidates = [(abs(w), (value - k * x) / w) for value, k, w in ((data, a, b), (noise, c, d)) if usable(k, w)]
    if not candidates:
        raise InputError(f"An output of kind {prediction.kind!r} says nothing at alpha={level.alpha:g}.")
    return max(candidates, key=lambda pair: pair[0])[1]


def usable(k: float, weight: float) -> bool:
    """Tell whether value = k * x + weight * output can be solved for the output."""
    return math.isfinite(k) and math.isfinite(weight) and weight != 0


@dataclass(frozen=True)
class Gaussian(Known):
    """Data whose numbers are independent and normal; `deviation` 0 is a data set of one picture.

    Attributes:
        mean: a number, or a tensor that broadcasts against the samples.
        deviation: standard deviation of the data.
    """

    mean: float | Tensor = 0.1
    deviation: float = 0.2

    def variance(self, level: Level) -> float:
        """Return the variance of a sample at `level`."""
        return (level.alpha * self.deviation) ** 2 + level.sigma**2

    def centred(self, x: Tensor, level: Level) -> Tensor:
        """Return x minus its mean at `level`."""
        return x - level.alpha * self.mean

    def estimate(self, x: Tensor, level: Level) -> Tensor:
        variance = self.variance(level)
        gain = level.alpha * self.deviation**2 / variance if variance > 0 else 0.0
        return gain * self.centred(x, level) + self.mean

    def noise(self, x: Tensor, level: Level) -> Tensor:
        variance = self.variance(level)
        return (level.sigma / variance if variance > 0 else 0.0) * self.centred(x, level)

    def transport(self, x: Tensor, a: Level, b: Level) -> Tensor:
        """Standard scores stay what they are: the exact solution for Gaussian data."""
        if self.variance(a) == 0:
            raise InputError("A data set of one picture has no flow away from sigma = 0.")
        return self.centred(x, a) * math.sqrt(self.variance(b) / self.variance(a)) + b.alpha * self.mean

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * self.deviation + self.mean


@dataclass(frozen=True)
class Mixture(Known):
    """A mixture of isotropic Gaussians over all numbers of a sample together.

    Samples have any shape (batch, ...) whose other dimensions hold as many numbers as a mean.

    Attributes:
        means: one tuple of numbers per component.
        deviations: one standard deviation per component.
        weights: one probability per component.
    """

    means: tuple[tuple[float, ...], ...] = ((0.45, 0.3), (-0.4, 0.25), (0.05, -0.5))
    deviations: tuple[float, ...] = (0.08, 0.12, 0.05)
    weights: tuple[float, ...] = (0.5, 0.3, 0.2)

    def __post_init__(self) -> None:
        sizes = {len(mean) for mean in self.means}
        if len(sizes) != 1 or not len(self.means) == len(self.deviations) == len(self.weights):
            raise InputError("A mixture needs one mean of equal length, one deviation and one weight per component.")
        if min(self.deviations) <= 0 or min(self.weights) <= 0 or not math.isclose(sum(self.weights), 1.0):
            raise InputError("A mixture needs deviations above 0, and weights above 0 that add up to 1.")

    @property
    def dimension(self) -> int:
        """The numbers in one sample."""
        return len(self.means[0])

    @cached_property
    def centres(self) -> Tensor:
        """The means, shape (components, dimension)."""
        return torch.tensor(self.means, dtype=torch.float64)

    @cached_property
    def squares(self) -> Tensor:
        """The variances of the components, shape (components,)."""
        return torch.tensor(self.deviations, dtype=torch.float64) ** 2

    @cached_property
    def shares(self) -> Tensor:
        """The weights, shape (components,)."""
        return torch.tensor(self.weights, dtype=torch.float64)

    def parts(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Return each component's probability given x, its variance at `level`, and x minus its mean at `level`."""
        apart = x.reshape(len(x), 1, self.dimension) - level.alpha * self.centres
        variances = level.alpha**2 * self.squares + level.sigma**2
        exponent = self.shares.log() - 0.5 * self.dimension * variances.log() - 0.5 * apart.square().sum(-1) / variances
        return exponent.softmax(dim=1), variances, apart

    def estimate(self, x: Tensor, level: Level) -> Tensor:
        probability, variances, apart = self.parts(x, level)
        each = self.centres + (level.alpha * self.squares / variances)[:, None] * apart
        return torch.einsum("bk,bkd->bd", probability, each).reshape(x.shape)

    def noise(self, x: Tensor, level: Level) -> Tensor:
        probability, variances, apart = self.parts(x, level)
        return torch.einsum("bk,bkd->bd", probability * (level.sigma / variances), apart).reshape(x.shape)

    def component(self, x: Tensor, level: Level = CLEAN) -> Tensor:
        """Return the number of the likeliest component of each sample, shape (batch,)."""
        return self.parts(x, level)[0].argmax(dim=1)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.shares, shape[0], replacement=True, generator=generator)
        z = torch.randn(shape[0], self.dimension, generator=generator, dtype=torch.float64)
        return (self.centres[chosen] + self.squares[chosen].sqrt()[:, None] * z).reshape(tuple(shape))

    def transport(self, x: Tensor, a: Level, b: Level, *, tolerance: float = 1e-9) -> Tensor:
        """Integrate the probability flow in lambda by Runge-Kutta steps that are halved until `tolerance` is met.

        With u = x / alpha and r = sigma / alpha the flow is du / dr = eps, or du / dlog r = r * eps. The last piece to
        r = 0, where r is far below every deviation, is du = -r^2 / 2 * eps / r.
        """
        small = 1e-4 * min(self.deviations)
        first, last = (min(max(level.ratio, small), FAR) for level in (a, b))
        mean = torch.einsum("k,kd->d", self.shares, self.centres).reshape(x.shape[1:])
        u = x.double() / a.alpha if a.ratio <= FAR else (x.double() - a.alpha * mean) / a.sigma * FAR + mean
        if a.ratio < small:
            u = u + self.slope(u, small) / 2
        count, coarse = 32, None
        while count <= 4096:
            fine = runge_kutta(self.slope, u, math.log(first), math.log(last), count)
            if coarse is not None and float((fine - coarse).abs().max()) < 63 * tolerance * max(last, 1.0):
                fine = fine + (fine - coarse) / 63
                break
            count, coarse = 2 * count, fine
        if b.ratio < small:
            fine = fine - self.slope(fine, small) / 2
        far = b.alpha * mean + (fine - mean) * (b.sigma / FAR)
        return (fine * b.alpha if b.ratio <= FAR else far).to(x.dtype)

    def slope(self, u: Tensor, ratio: float) -> Tensor:
        """Return du / dlog r at r = `ratio`."""
        return ratio * self.noise(u, Level(0, 1.0, ratio))


SIXTH: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1 / 3, (1 / 3,)),
    (2 / 3, (0, 2 / 3)),
    (1 / 3, (1 / 12, 1 / 3, -1 / 12)),
    (1 / 2, (-1 / 16, 9 / 8, -3 / 16, -3 / 8)),
    (1 / 2, (0, 9 / 8, -3 / 8, -3 / 4, 1 / 2)),
    (1, (9 / 44, -9 / 11, 63 / 44, 18 / 11, 0, -16 / 11)),
    (1, (11 / 120, 0, 27 / 40, 27 / 40, -4 / 15, -4 / 15, 11 / 120)),
)
"""Runge-Kutta of order 6, Butcher 1964: node and weights of every stage after the first; the last is the end."""


def runge_kutta(slope: Callable[[Tensor, float], Tensor], u: Tensor, start: float, end: float, count: int) -> Tensor:
    """Return u at log r = `end` after `count` sixth-order steps from log r = `start`; `slope` takes (u, r)."""
    h = (end - start) / count
    for k in range(count):
        here, at, slopes = start + k * h, 0.0, []
        stage = u
        for node, weights in SIXTH:
            slopes.append(slope(stage, math.exp(here + at * h)))
            at, stage = node, u + h * sum(w * s for w, s in zip(weights, slopes, strict=True) if w)
        u = stage
    return u
