"""Pictures before and after an edit, and the instruction to edit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..streams import Stream
from .examples import PictureExamples


@dataclass
class Edits(PictureExamples):
    """Examples of which a share lacks the instruction, the picture, or both (Brooks et al. 2022, 2211.09800, 3.2.1).

    So the network learns what guidance by either compares. A batch also holds under "shown" 1 or, for rows without
    the picture, 0.

    Attributes:
        dropout: share of the examples without the instruction alone, as many without both, and as many without the
            picture alone.
    """

    dropout: float = 0.0

    def example(self, number: int, stream: Stream) -> dict[str, Any]:
        """Return an example."""
        found = super().example(number, stream)
        chance = float(torch.rand((), generator=stream("left out"), dtype=torch.float64))
        if chance < 2 * self.dropout and self.captions is not None:
            found["ids"] = self.captions.words("")
        found["shown"] = torch.tensor(float(not self.dropout <= chance < 3 * self.dropout))
        return found
