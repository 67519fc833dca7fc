"""What can be known of a weight file without its values: names, shapes, types and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch

from ..core.weights_io import Entry
from .rules import HOLE, Shape, as_regex


@dataclass(frozen=True)
class Header:
    """The names of tensors with their shapes and types, and the strings stored with them.

    Attributes:
        shapes: name -> shape.
        dtypes: name -> type; may be empty where only shapes are known.
        metadata: strings stored in the file; of a .ckpt file also plain numbers, such as `global_step`.
    """

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Header:
        """Return what the entries of an opened file say."""
        shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
        return cls(shapes, {name: entry.dtype for name, entry in entries.items()}, metadata)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def has(self, *patterns: str) -> bool:
        """Tell whether every pattern matches a name; `{}` in a pattern stands for a number."""
        return all(self.first(pattern) is not None for pattern in patterns)

    def first(self, pattern: str) -> str | None:
        """Return the first name that a pattern matches, or None."""
        if HOLE not in pattern:
            return pattern if pattern in self.shapes else None
        form = as_regex(pattern)
        return next((name for name in self.shapes if form.fullmatch(name)), None)

    def shape(self, pattern: str) -> Shape | None:
        """Return the shape of the first tensor that a pattern matches, or None."""
        name = self.first(pattern)
        return None if name is None else self.shapes[name]

    def under(self, prefix: str) -> Header:
        """Return the part of the file whose names begin with a prefix, without it."""
        if not prefix:
            return self
        cut = len(prefix)
        shapes = {name[cut:]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        dtypes = {name[cut:]: dtype for name, dtype in self.dtypes.items() if name.startswith(prefix)}
        return Header(shapes, dtypes, self.metadata)

    def numbers_at(self, pattern: str) -> list[int]:
        """Return, sorted, the numbers that the only hole of a leading pattern has among the names."""
        form = as_regex(pattern, r"(?:\..*)?")
        return sorted({int(match.group(1)) for name in self.shapes if (match := form.fullmatch(name))})

    def count(self, pattern: str) -> int:
        """Return one more than the greatest number in the hole of a leading pattern; 0 when nothing matches."""
        return max(self.numbers_at(pattern), default=-1) + 1

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """The floating-point type that most values have, or None when no type is known."""
        sizes: dict[torch.dtype, int] = {}
        for name, dtype in self.dtypes.items():
            if dtype.is_floating_point:
                sizes[dtype] = sizes.get(dtype, 0) + prod(self.shapes[name])
        return max(sizes, key=sizes.__getitem__) if sizes else None


def matching(names: Iterable[str], reasons: Mapping[str, str]) -> dict[str, str]:
    """Return name -> reason for the names that a regular expression of the table matches from their start."""
    compiled = [(re.compile(pattern), reason) for pattern, reason in reasons.items()]
    found = {name: next((reason for form, reason in compiled if form.match(name)), None) for name in names}
    return {name: reason for name, reason in found.items() if reason is not None}
