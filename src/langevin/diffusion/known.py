"""Constraints that hold a part of the sample which is known."""

from __future__ import annotations

import torch

from .process import noised
from .rows import Noise, cast
from .sampling import Edit
from .table import Step


def blend(x: torch.Tensor, known: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return `known` where `mask` is 1 and `x` where it is 0, in the type of `x`."""
    return torch.lerp(x, cast(known, x.dtype), cast(mask, x.dtype))


def keep_known(source: torch.Tensor, mask: torch.Tensor, noise: Noise) -> Edit:
    """Return an edit for after each step that puts the known part back, noised to the level at which the sample is.

    The noise is drawn afresh each time: Lugmayr et al. 2022 (2201.09865), eq. 8.

    Args:
        source: clean data in the sample's space and shape.
        mask: 1 where the data is known, 0 where it is made; broadcasts against `source`.
        noise: returns standard normal draws in the sample's shape.
    """

    def edit(x: torch.Tensor, step: Step) -> torch.Tensor:
        return blend(x, noised(source, noise(), step.after), mask)

    return edit
