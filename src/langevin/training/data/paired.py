"""Examples of a subject beside examples of its class, which keep a model from forgetting the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..streams import Stream
from ..trainer import Examples


@dataclass
class Paired:
    """Prior preservation (Ruiz et al. 2022, 2208.12242, eq. 2): every example of a subject brings one of its class.

    A batch holds the subject's rows, then as many of the class, and under "shares" how much each counts.

    Attributes:
        subject, prior: the examples; which one of the class comes is drawn.
        weight: share of the class's rows.
    """

    subject: Examples
    prior: Examples
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.subject)

    def example(self, number: int, stream: Stream) -> tuple[Any, Any]:
        """Return an example of the subject and one of the class."""
        other = int(torch.randint(len(self.prior), (), generator=stream("prior")))
        return self.subject.example(number, stream), self.prior.example(other, lambda what: stream(f"prior {what}"))

    def collate(self, examples: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        """Return a batch."""
        rows = [one for one, _ in examples] + [other for _, other in examples]
        shares = [1.0] * len(examples) + [self.weight] * len(examples)
        return {**self.subject.collate(rows), "shares": torch.tensor(shares)}
