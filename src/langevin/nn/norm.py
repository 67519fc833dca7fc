"""Normalisation steered by an embedding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def activated(norm: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """Return `activation(norm(x))`, in the way of the norm if it has one for both."""
    both = getattr(type(norm), "activated", None)
    return activation(norm(x)) if both is None else both(norm, x, activation)


def scale_shift(normalised: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Return `normalised * (1 + scale) + shift` (FiLM, Perez et al. 2018; adaptive group norm, Dhariwal & Nichol 2021).

    normalised: (B, C, ...). scale_and_shift: (B, 2C, ...) with the scale in the first half of dimension 1.
    """
    scale, shift = scale_and_shift.chunk(2, dim=1)
    return normalised * (1 + scale) + shift


class AdaGroupNorm(nn.Module):
    """Group norm without own parameters; the time embedding gives scale and shift (Dhariwal & Nichol 2021).

    forward: x (B, channels, H, W) and embedding (B, embedding_dim) to (B, channels, H, W).
    """

    def __init__(self, embedding_dim: int, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.linear = nn.Linear(embedding_dim, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return scale_shift(F.group_norm(x, self.groups, eps=self.eps), self.linear(embedding)[:, :, None, None])
