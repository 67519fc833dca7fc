"""Matrices as products of two thin ones: the truncated singular value decomposition behind merging and extraction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import InputError
from ..weights.dialects.parts import Parts
from .layers import Shape


@dataclass(frozen=True)
class Truncation:
    """Where a decomposition is cut.

    Attributes:
        rank: at most so many singular values.
        energy: as few as hold this fraction of the sum of their squares.
        clamp: quantile, above 0.5, of the entries of both factors taken with either sign, since the sign of singular
            vectors is arbitrary; what is beyond it is set to it.
        niter: None for the exact decomposition; else a randomised one with so many subspace iterations, which is faster
            for ranks far below the size (Halko et al. 2011, 0909.4061, algorithm 5.1 after 4.4).
    """

    rank: int | None = None
    energy: float | None = None
    clamp: float | None = None
    niter: int | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise InputError("Give rank=, energy= or both: how much of the difference is to be kept.")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank is {self.rank}; it must be at least 1.")
        for name, value, low in (("energy", self.energy, 0.0), ("clamp", self.clamp, 0.5)):
            if value is not None and not low < value <= 1:
                raise InputError(f"{name} is {value}; it must be in ({low:g}, 1].")
        if self.niter is not None and (self.rank is None or self.niter < 0):
            raise InputError(
                "niter= is a number of iterations, and needs rank=: without it the whole spectrum is needed."
            )

    def cut(self, singular: Tensor, size: int) -> int:
        """Return how many singular values are kept: at least one, and none that is rounding."""
        squares = singular.cpu().double().square()
        count = int((singular > singular[0] * size * torch.finfo(singular.dtype).eps).sum())
        if self.energy is not None:
            held = squares.cumsum(0) / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
            count = min(count, 1 + int((held < self.energy).sum()))
        return max(1, min(count, self.rank or count))


def decomposed(matrix: Tensor, truncation: Truncation) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, the singular values and V^T, cut; the matrix is float32 or float64."""
    rank, niter = truncation.rank, truncation.niter
    if niter is None or rank is None or 4 * rank >= min(matrix.shape):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(matrix.shape[1], rank + 10, generator=generator, dtype=matrix.dtype).to(matrix.device)
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(niter):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
        u, s, vh = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
        u = basis @ u
    kept = truncation.cut(s, max(matrix.shape))
    return u[:, :kept], s[:kept], vh[:kept]


def decomposed_product(up: Tensor, down: Tensor, truncation: Truncation) -> tuple[Tensor, Tensor, Tensor]:
    """Return the decomposition of up down, which is exact and costs little when both are thin."""
    left, right = torch.linalg.qr(up), torch.linalg.qr(down.mT)
    u, s, vh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    kept = truncation.cut(s, max(len(up), down.shape[1]))
    return left.Q @ u[:, :kept], s[:kept], vh[:kept] @ right.Q.mT


def as_lora(u: Tensor, s: Tensor, vh: Tensor, shape: Shape, *, clamp: float | None = None) -> Parts:
    """Return U S and V^T as the factors of a LoRA for a weight of this shape, with the scale 1."""
    up, down = u * s, vh
    if clamp is not None:
        limit = torch.quantile(torch.cat([up.flatten(), down.flatten()]).abs(), 2 * clamp - 1)
        up, down = up.clamp(-limit, limit), down.clamp(-limit, limit)
    rank, point = len(s), (1,) * (len(shape) - 2)
    tensors = {"down": down.reshape(rank, *shape[1:]), "up": up.reshape(shape[0], rank, *point)}
    return Parts("lora", {name: tensor.contiguous() for name, tensor in tensors.items()}, float(rank))
