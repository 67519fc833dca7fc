"""Several sets of examples as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..streams import Stream
from ..trainer import Examples


@dataclass
class Joined:
    """The examples of all parts, one part after the other; the first one makes the batches.

    Attributes:
        parts: at least one.
    """

    parts: Sequence[Examples]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def example(self, number: int, stream: Stream) -> Any:
        """Return an example."""
        for part in self.parts:
            if number < len(part):
                return part.example(number, stream)
            number -= len(part)
        raise IndexError(number)

    def collate(self, examples: Sequence[Any]) -> Any:
        """Return a batch."""
        return self.parts[0].collate(examples)
