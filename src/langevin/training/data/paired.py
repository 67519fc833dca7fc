"""Examples of a subject beside examples of its class, which keep a model from forgetting the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...core.records import Records
from ..streams import Stream
from ..trainer import Examples
from .buckets import Size, nearest
from .examples import PictureExamples, shape


@dataclass
class Paired:
    """Prior preservation (Ruiz et al. 2022, 2208.12242, eq. 2): every example of a subject brings one of its class.

    A batch holds the subject's rows, then as many of the class, and under "shares" how much each counts.

    Attributes:
        subject, prior: the examples; which one of the class comes is drawn.
        weight: share of the class's rows.
        fitting: size of the subject's pictures -> examples of the class in that size; without any, `prior` serves all.
        rows: of a batch, that an example brings.
    """

    subject: Examples
    prior: Examples
    weight: float = 1.0
    fitting: dict[Size, PictureExamples] = field(default_factory=dict)
    rows = 2

    def __len__(self) -> int:
        return len(self.subject)

    def bucket(self, least: int) -> list[list[int]]:
        """Give every example of the subject a size, see `PictureExamples.bucket`, and the class the same sizes.

        A picture of the class comes in the one of these sizes that cuts least off it. A size that no picture of the
        class is nearest to gets all of them.
        """
        subject, prior = self.sets()
        found = subject.bucket(least)
        sizes = sorted(set(subject.sizes or ()))
        rows = prior.records.rows
        homes = [nearest(shape(record, prior.pictures["pixels"]), sizes) for record in rows]
        for size in sizes:
            own = [record for record, home in zip(rows, homes, strict=True) if home == size] or list(rows)
            framing = replace(prior.framing, height=size[0], width=size[1])
            self.fitting[size] = replace(prior, records=Records(prior.records.where, own), framing=framing)
        return found

    def sets(self) -> list[PictureExamples]:
        """Return the sets of pictures that it consists of: of the subject, and of the class."""
        subject: Any = self.subject
        prior: Any = self.prior
        return [subject, *(self.fitting.values() or [prior])]

    def example(self, number: int, stream: Stream) -> tuple[Any, Any]:
        """Return an example of the subject and one of the class."""
        subject: Any = self.subject
        prior = self.fitting[subject.sizes[number]] if self.fitting else self.prior
        other = int(torch.randint(len(prior), (), generator=stream("prior")))
        return self.subject.example(number, stream), prior.example(other, lambda what: stream(f"prior {what}"))

    def collate(self, examples: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        """Return a batch."""
        rows = [one for one, _ in examples] + [other for _, other in examples]
        shares = [1.0] * len(examples) + [self.weight] * len(examples)
        return {**self.subject.collate(rows), "shares": torch.tensor(shares)}
