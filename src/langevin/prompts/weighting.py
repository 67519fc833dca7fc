"""What a weight does to the encoder's hidden states: one function for each tool's arithmetic.

All take the hidden states z (tokens, width) of one row, and the weights w (tokens, 1) of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_WEIGHT = 1e-5
"""Below this a fragment of compel is gone: the row without it counts 63,662 times."""

SMALLEST_MEAN = 1e-3
"""A mean closer to zero than this part of the spread is rounding noise, and no measure of anything."""


def scaled(z: Tensor, w: Tensor) -> Tensor:
    """Return w z, rescaled so that its mean over the whole row is that of z (A1111).

    The rescaling is left out when it would divide by a mean that is zero within rounding, or turn the sign.
    """
    result = w * z
    before, after = z.mean(), result.mean()
    sound = (after.abs() > SMALLEST_MEAN * result.std()) & (before * after > 0)
    return result * torch.where(sound, before / torch.where(sound, after, torch.ones_like(after)), 1.0)


def from_empty(z: Tensor, w: Tensor, empty: Tensor) -> Tensor:
    """Return empty + w (z - empty), where `empty` are the hidden states of the empty prompt (ComfyUI)."""
    return empty + w * (z - empty)


def lessened(z: Tensor, w: Tensor, empty: Tensor, masked: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Return the mean of the row and of what it is without each lessened fragment (compel).

    Args:
        masked: for every fragment of weight v < 1, the hidden states with its tokens hidden from attention, and v.

    Every one of these hidden states goes through `from_empty` with the same w; then the row counts once, and the one
    without a fragment counts tan((1 - v) pi / 2) times: not at all for v = 1, as often as the row for v = 0.5, and
    all but alone for v = 0 and below.
    """
    total, weight = from_empty(z, w, empty), 1.0
    for without, v in masked:
        share = math.tan((1.0 - max(v, SMALLEST_WEIGHT)) * math.pi / 2)
        total = total + share * from_empty(without, w, empty)
        weight += share
    return total / weight
