"""What networks over exploding levels, x = x_0 + sigma * eps, are told of a noise level instead of a timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .process import Level


def quarter_log(sigma: Tensor) -> Tensor:
    """Return log(sigma) / 4, c_noise of Karras et al. 2022 (2206.00364), table 1."""
    return sigma.log() / 4


def thousand_logs(sigma: Tensor) -> Tensor:
    """Return 1000 times `quarter_log`, the unit of consistency models: Song et al. 2023 (2303.01469), appendix C."""
    return 1000 * quarter_log(sigma)


def angle(sigma: Tensor) -> Tensor:
    """Return the angle in quarter turns whose tangent is sigma: Evans et al. 2024 (2407.14358)."""
    return sigma.atan() / (math.pi / 2)


LABELS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "quarter_log": quarter_log,
    "thousand_logs": thousand_logs,
    "angle": angle,
}


def labelled(sigma: float, label: str) -> Level:
    """Return the exploding level of `sigma`, told by the name of a label; clean data has the label -1."""
    t = float(LABELS[label](torch.tensor(sigma, dtype=torch.float64, device="cpu"))) if sigma > 0 else -1
    return Level(t, 1.0, sigma)
