"""Normalisation layers that more than one architecture uses."""

from __future__ import annotations

from torch import Tensor, nn


def scale_shift(normalised: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Return `normalised * (1 + scale) + shift` (FiLM, Perez et al. 2018; adaptive group norm, Dhariwal & Nichol 2021).

    normalised: (B, C, ...). scale_and_shift: (B, 2C, ...) with the scale in the first half of dimension 1.
    """
    scale, shift = scale_and_shift.chunk(2, dim=1)
    return normalised * (1 + scale) + shift


class AdaGroupNorm(nn.Module):
    """Group normalisation whose scale and shift are predicted from an embedding (Dhariwal & Nichol 2021).

    forward: x (B, C, H, W) and embedding (B, embedding_channels) to (B, C, H, W). The prediction layer is `linear`.
    """

    def __init__(self, embedding_channels: int, channels: int, *, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.linear = nn.Linear(embedding_channels, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        predicted = self.linear(embedding)[:, :, None, None]
        return scale_shift(nn.functional.group_norm(x, self.groups, eps=self.eps), predicted)
