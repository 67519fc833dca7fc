"""What a network predicts, and how to read data and noise off its output.

With x = alpha * x_0 + sigma * eps every kind of output is linear in (x, output), so a kind is two pairs of
coefficients: x_0 = a * x + b * output and eps = c * x + d * output. The non-linear parts of sampling, clipping,
dynamic thresholding and learned variance, live here too and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..core.errors import ConfigError, InputError, check_choice
from .process import Level

Pair = tuple[float, float]


def multiplied(pairs: tuple[Pair, Pair], factor: float) -> tuple[Pair, Pair]:
    """Return the coefficients for an output that is to be multiplied by `factor` before it is read by `pairs`."""
    (a, b), (c, d) = pairs
    return (a, factor * b), (c, factor * d)


def _epsilon(level: Level) -> tuple[Pair, Pair]:
    """The noise itself: Ho et al. 2020 (2006.11239), eq. 12."""
    inverse = 1.0 / level.alpha if level.alpha > 0 else float("nan")
    return (inverse, -level.sigma * inverse), (0.0, 1.0)


def _sample(level: Level) -> tuple[Pair, Pair]:
    """The clean data."""
    inverse = 1.0 / level.sigma if level.sigma > 0 else float("nan")
    return (0.0, 1.0), (inverse, -level.alpha * inverse)


def _velocity(level: Level) -> tuple[Pair, Pair]:
    """v = (alpha * eps - sigma * x_0) / norm: Salimans & Ho 2022 (2202.00512), appendix D, free of scale."""
    norm, square = level.norm, level.norm**2
    return (level.alpha / square, -level.sigma / norm), (level.sigma / square, level.alpha / norm)


def _score(level: Level) -> tuple[Pair, Pair]:
    """The gradient of the log density, -eps / sigma: Song et al. 2021 (2011.13456)."""
    return multiplied(_epsilon(level), -level.sigma)


def _scaled_score(level: Level) -> tuple[Pair, Pair]:
    """sigma * score, which is -eps."""
    return multiplied(_epsilon(level), -1.0)


def _flow(level: Level) -> tuple[Pair, Pair]:
    """eps - x_0, the direction of a straight path: Lipman et al. 2022 (2210.02747)."""
    total = level.alpha + level.sigma
    return (1.0 / total, -level.sigma / total), (1.0 / total, level.alpha / total)


def reversed_flow(level: Level) -> tuple[Pair, Pair]:
    """x_0 - eps: the direction of a straight path for networks whose time runs from noise to data."""
    return multiplied(_flow(level), -1.0)


KINDS: dict[str, Callable[[Level], tuple[Pair, Pair]]] = {
    "epsilon": _epsilon,
    "sample": _sample,
    "v_prediction": _velocity,
    "flow_prediction": _flow,
    "score": _score,
    "scaled_score": _scaled_score,
}


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """How a raw network output F becomes data on exploding levels: x_0 = c_skip * x + c_out * F.

    Karras et al. 2022 (2206.00364), table 1, last column; with `low` the boundary condition of consistency models,
    Song et al. 2023 (2303.01469), appendix C, for which the output at sigma = low is x itself.

    Attributes:
        data: standard deviation of the data.
        low: the noise level at which x_0 = x.
        sign: -1 for networks that were trained on the negative of F (v-prediction).
    """

    data: float = 0.5
    low: float = 0.0
    sign: float = 1.0

    def data_pair(self, sigma: Any) -> tuple[Any, Any]:
        """Return c_skip and c_out at `sigma`, a number or a tensor."""
        above, spread = sigma - self.low, sigma**2 + self.data**2
        return self.data**2 / (above**2 + self.data**2), self.sign * above * self.data / spread**0.5

    def in_scale(self, sigma: Any) -> Any:
        """Return c_in at `sigma`, which brings samples to unit variance on their way into the network."""
        return (sigma**2 + self.data**2) ** -0.5

    def __call__(self, level: Level) -> tuple[Pair, Pair]:
        skip, out = self.data_pair(level.sigma)
        inverse = 1.0 / level.sigma if level.sigma > 0 else float("nan")
        return (skip, out), ((1.0 - skip) * inverse, -out * inverse)


@dataclass(frozen=True, slots=True)
class Boundary:
    """How a consistency model in latent space blends the sample into its estimate of the data, by the timestep alone.

    x_0 becomes c_skip(t) * x + c_out(t) * x_0, which is x itself at t = 0: Luo et al. 2023 (2310.04378), section 4.1.

    Attributes:
        scale: factor of the timestep.
        data: standard deviation of the data.
    """

    scale: float = 10.0
    data: float = 0.5

    def __call__(self, level: Level) -> Pair:
        t = level.t * self.scale
        return self.data**2 / (t**2 + self.data**2), t / math.hypot(t, self.data)


def mix(pair: Pair, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return pair[0] * x + pair[1] * output without the terms whose coefficient is 0 or 1."""
    a, b = pair
    if a == 0.0:
        return output if b == 1.0 else b * output
    scaled = x if a == 1.0 else a * x
    return torch.add(scaled, output, alpha=b)


@dataclass(frozen=True)
class Prediction:
    """What the network predicts and how its estimate of the data is bounded.

    Attributes:
        kind: a name in `KINDS`.
        clip: bound of |x_0|, or None.
        threshold: (quantile, largest bound) of dynamic thresholding, or None; wins over `clip`.
        scaling: how the output is read instead of by `kind`, such as a `Preconditioning`; None reads it by `kind`.
        variance: "learned" (second half of the channels is the variance) or "learned_range" (it interpolates between
            two log variances, in [-1, 1]), or None (the output is the prediction alone).
        boundary: the boundary condition of a consistency model, after the bounds; None has none.
    """

    kind: str = "epsilon"
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    scaling: Callable[[Level], tuple[Pair, Pair]] | None = None
    variance: Literal["learned", "learned_range"] | None = None
    boundary: Boundary | None = None

    def __post_init__(self) -> None:
        check_choice("prediction_type", self.kind, KINDS)

    @property
    def bounded(self) -> bool:
        """Whether the estimate of the data is more than the output read at its level."""
        return self.clipped or self.boundary is not None

    @property
    def clipped(self) -> bool:
        """Whether the estimate of the data is cut off, so that it is not linear in x and the output."""
        return self.clip is not None or self.threshold is not None

    def pairs(self, level: Level) -> tuple[Pair, Pair]:
        """Return the coefficients of (x, output) in x_0 and in eps at `level`."""
        return (self.scaling or KINDS[self.kind])(level)

    def check(self, level: Level) -> None:
        """Raise ConfigError when an output of this kind says nothing about the data at `level`."""
        if self.kind in ("epsilon", "score", "scaled_score") and level.alpha == 0:
            raise ConfigError(
                f"At timestep {level.t} the sample is pure noise (zero signal-to-noise ratio), so a network that "
                "predicts the noise says nothing about the data; use prediction_type='v_prediction' or 'sample', "
                "or another spacing."
            )
        if self.kind == "sample" and level.sigma == 0 and self.scaling is None:
            raise ConfigError(
                f"At timestep {level.t} the sample is clean data, so a network that predicts the data says nothing "
                "about the noise; use prediction_type='epsilon' or 'v_prediction', or a noise level above 0."
            )

    def split(self, output: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (prediction, variance part or None) of an output whose channels are dimension 1."""
        if self.variance is None:
            return output, None
        if output.shape[1] == 2 * x.shape[1]:
            return output.split(x.shape[1], dim=1)
        if output.shape[1] == x.shape[1]:
            return output, None
        raise InputError(
            f"variance_type={self.variance!r} expects {2 * x.shape[1]} output channels for a sample of {x.shape[1]}, "
            f"but the network returned {output.shape[1]}."
        )

    def at(self, level: Level) -> Reading:
        """Return how outputs are read at `level`; its numbers are worked out once."""
        return Reading(self, level)

    def data(self, x: torch.Tensor, output: torch.Tensor, level: Level) -> torch.Tensor:
        """Return the bounded estimate of x_0."""
        return self.at(level).data(x, output)

    def noise(self, x: torch.Tensor, output: torch.Tensor, level: Level) -> torch.Tensor:
        """Return the estimate of eps as the network gave it, free of any bound."""
        return self.at(level).noise(x, output)

    def bound(self, x0: torch.Tensor) -> torch.Tensor:
        """Clip x_0 to [-clip, clip], or to the per-sample quantile of Saharia et al. 2022 (2205.11487), section 2.3."""
        if self.threshold is None:
            return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
        quantile, largest = self.threshold
        flat = x0.flatten(1)
        limit = torch.quantile(flat.abs(), quantile, dim=1, keepdim=True).clamp(1.0, largest)
        return (torch.clamp(flat, -limit, limit) / limit).reshape(x0.shape)


class Reading:
    """How the outputs of a network are read at one level.

    Attributes:
        level: where.
        of_data, of_noise: the coefficients of (x, output) in x_0, before any clipping, and in eps.
        blend: the coefficients of (x, x_0) in x_0 after clipping, where a boundary condition asks for them then.
    """

    __slots__ = ("blend", "bounded_pair", "level", "of_data", "of_noise", "prediction")

    def __init__(self, prediction: Prediction, level: Level) -> None:
        self.prediction, self.level = prediction, level
        self.of_data, self.of_noise = prediction.pairs(level)
        self.blend = prediction.boundary(level) if prediction.boundary else None
        if self.blend is not None and not prediction.clipped:
            (keep, share), (a, b) = self.blend, self.of_data
            self.of_data, self.blend = (keep + share * a, share * b), None
        self.bounded_pair = _sample(level)[1] if prediction.bounded else None

    def data(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the bounded estimate of x_0."""
        x0 = self.prediction.bound(mix(self.of_data, x, output))
        return x0 if self.blend is None else mix(self.blend, x, x0)

    def noise(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the estimate of eps as the network gave it, free of any bound."""
        return mix(self.of_noise, x, output)

    def bounded_noise(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the eps that belongs to the bounded estimate of x_0."""
        if self.bounded_pair is None:
            return self.noise(x, output)
        return mix(self.bounded_pair, x, self.data(x, output))
