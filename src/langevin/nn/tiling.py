"""Run a network that changes the resolution by a constant factor tile by tile, and blend the overlaps."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from ..core.errors import InputError, check_choice

RAMPS = ("linear", "cosine")


def run_tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tile: int,
    stride: int,
    scale: Fraction | int = 1,
    ramp: str = "linear",
) -> Tensor:
    """Apply `function` to overlapping square tiles of x (..., H, W) and return the blended whole.

    tile, stride: side of a tile and distance between tiles, in pixels of x. scale: resolution of the output over that
    of x. ramp: weight of a tile over its overlap with the one above or to the left, "linear" or "cosine". A tile whose
    area is already covered is not computed. Raises InputError when stride is not in 1..tile or does not land on whole
    pixels of the output.
    """
    check_choice("ramp", ramp, RAMPS)
    scale = Fraction(scale)
    if not 0 < stride <= tile or (stride * scale).denominator != 1:
        raise InputError(f"tiles of {tile} pixels cannot advance by {stride} when the resolution changes by {scale}")
    kept = int(stride * scale)
    tops, lefts = (_starts(size, tile, stride) for size in x.shape[-2:])
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in tops:
        height = kept if top != tops[-1] else None
        row: list[Tensor] = []
        below: list[Tensor] = []
        left_edge: Tensor | None = None
        for column, left in enumerate(lefts):
            width = kept if left != lefts[-1] else None
            piece = function(x[..., top : top + tile, left : left + tile])
            if above:
                piece = _blend(above[column], piece, -2, ramp)
            if left_edge is not None:
                piece = _blend(left_edge, piece, -1, ramp)
            # Copies, so that a piece can be freed before its row is complete.
            below.append(piece[..., kept:, :].clone() if height else piece[..., :0, :])
            left_edge = piece[..., kept:] if width else None
            row.append(piece[..., :height, :width].clone())
        above = below
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def _starts(size: int, tile: int, stride: int) -> list[int]:
    """Return where tiles start so that each adds something the one before it did not cover."""
    return list(range(0, max(size - (tile - stride), 1), stride))


def _blend(before: Tensor, piece: Tensor, dim: int, ramp: str) -> Tensor:
    """Fade from the edge `before` into the beginning of `piece` along `dim`."""
    overlap = before.shape[dim]
    if overlap == 0:
        return piece
    position = torch.arange(overlap, device=piece.device, dtype=torch.float32)
    weight = position / overlap
    if ramp == "cosine":
        weight = 0.5 - 0.5 * torch.cos((position + 0.5) * (torch.pi / overlap))
    weight = weight.to(piece.dtype).view(-1, *[1] * (-1 - dim))
    faded = torch.lerp(before, piece.narrow(dim, 0, overlap), weight)
    return torch.cat([faded, piece.narrow(dim, overlap, piece.shape[dim] - overlap)], dim=dim)
