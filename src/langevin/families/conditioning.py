"""What a network is told about a batch of pictures, as a family writes it down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="Conditioning")


@dataclass(frozen=True)
class Conditioning:
    """Base of a family's conditioning: every field is a tensor with one row per picture, or None.

    Attributes:
        offered: documented name of a callback's tensor -> field.
    """

    offered: ClassVar[Mapping[str, str]] = {}

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of the network's call."""
        raise NotImplementedError

    def map(self: Self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return it with every tensor changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})

    def repeat(self: Self, count: int) -> Self:
        """Return every row `count` times in a row."""
        return self.map(lambda rows: rows.repeat_interleave(count, dim=0))

    def rows(self: Self, chosen: slice) -> Self:
        """Return some of the rows."""
        return self.map(lambda rows: rows[chosen])

    def to(self: Self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return it on a device and in a type."""
        return self.map(lambda rows: rows.to(device=device, dtype=dtype))

    @staticmethod
    def cat(parts: Sequence[Self]) -> Self:
        """Return several batches as one."""
        if len(parts) == 1:
            return parts[0]
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
        joined = {name: torch.cat(rows) for name, rows in columns.items() if rows[0] is not None}
        return replace(parts[0], **joined)
