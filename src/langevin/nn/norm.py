"""Normalisation steered by an embedding."""

from __future__ import annotations

from torch import Tensor


def scale_shift(normalised: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Return `normalised * (1 + scale) + shift` (FiLM, Perez et al. 2018; adaptive group norm, Dhariwal & Nichol 2021).

    normalised: (B, C, ...). scale_and_shift: (B, 2C, ...) with the scale in the first half of dimension 1.
    """
    scale, shift = scale_and_shift.chunk(2, dim=1)
    return normalised * (1 + scale) + shift
