"""What a rule may do with tensors: every operation has an inverse, and works on meta tensors, which gives shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Op(Protocol):
    """An operation from the tensors of a rule's sources to those of its targets."""

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the targets' tensors; they may share memory with the sources."""

    @property
    def inverse(self) -> Op:
        """The operation from the targets to the sources."""


@dataclass(frozen=True)
class Same:
    """Nothing changes: as many targets as sources."""

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)

    @property
    def inverse(self) -> Same:
        return self


@dataclass(frozen=True)
class Split:
    """One tensor is cut along `dim` into `parts` equal pieces, or into pieces of the given sizes."""

    parts: int | tuple[int, ...]
    dim: int = 0

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        (tensor,) = tensors
        if isinstance(self.parts, tuple):
            return list(tensor.split(self.parts, self.dim))
        return list(tensor.tensor_split(self.parts, self.dim))

    @property
    def inverse(self) -> Join:
        return Join(self.parts, self.dim)


@dataclass(frozen=True)
class Join:
    """Tensors are put behind each other along `dim`; `parts` is what `Split` needs to part them again."""

    parts: int | tuple[int, ...]
    dim: int = 0

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(list(tensors), self.dim)]

    @property
    def inverse(self) -> Split:
        return Split(self.parts, self.dim)


@dataclass(frozen=True)
class Transpose:
    """Matrices are transposed; vectors (a bias) stay."""

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.t() if tensor.ndim == 2 else tensor for tensor in tensors]

    @property
    def inverse(self) -> Transpose:
        return self


@dataclass(frozen=True)
class Permute:
    """The axes of tensors with as many axes as `order` are permuted; others stay.

    (3, 2, 0, 1) turns a convolution of Keras (height, width, in, out) into torch's (out, in, height, width).
    """

    order: tuple[int, ...]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.permute(self.order) if tensor.ndim == len(self.order) else tensor for tensor in tensors]

    @property
    def inverse(self) -> Permute:
        return Permute(tuple(sorted(range(len(self.order)), key=self.order.__getitem__)))


@dataclass(frozen=True)
class Squeeze:
    """The weight of a convolution with a kernel of one pixel becomes a matrix; matrices and vectors stay."""

    axes: int = 2

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.flatten(1) if tensor.ndim == 2 + self.axes else tensor for tensor in tensors]

    @property
    def inverse(self) -> Unsqueeze:
        return Unsqueeze(self.axes)


@dataclass(frozen=True)
class Unsqueeze:
    """A matrix becomes the weight of a convolution with a kernel of one pixel; other tensors stay."""

    axes: int = 2

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor[(...,) + (None,) * self.axes] if tensor.ndim == 2 else tensor for tensor in tensors]

    @property
    def inverse(self) -> Squeeze:
        return Squeeze(self.axes)


SAME = Same()
