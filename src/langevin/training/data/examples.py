"""Examples on their way into a batch: framed pictures and token ids, every random part decided by the position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.records import HASH, Record, Records
from ..streams import Stream
from .buckets import Size, assign, plan
from .framing import Frame, Framing, opened, size_of

Words = Callable[[str], Tensor]
"""From a caption to token ids, (tokens,)."""


@dataclass(frozen=True)
class Captions:
    """How the text of an example is chosen.

    Attributes:
        words: reads texts as tokens.
        column: of the caption; a list of captions there means that one of them is drawn.
        fixed: the caption of every example instead, or several of which one is drawn.
        dropout: the chance that an example is seen without its caption.
        shuffle: shuffle the parts between commas, as tags are.
        second: reads texts for a second text encoder, whose tokens batches hold under "ids_2".
    """

    words: Words
    column: str = "text"
    fixed: str | Sequence[str] | None = None
    dropout: float = 0.0
    shuffle: bool = False
    second: Words | None = None

    def read(self, text: str) -> dict[str, Tensor]:
        """Return the tokens of a text for every text encoder, as a batch calls them."""
        return {"ids": self.words(text), **({} if self.second is None else {"ids_2": self.second(text)})}

    def text(self, columns: Mapping[str, Any], stream: torch.Generator, name: str) -> str:
        """Return the caption of an example.

        Raises:
            InputError: when it has none.
        """
        value = self.fixed if self.fixed is not None else columns[self.column]
        drawn, dropped = torch.rand(2, generator=stream, dtype=torch.float64).tolist()
        if isinstance(value, (list, tuple)) and value:
            value = value[int(drawn * len(value))]
        if not isinstance(value, str):
            raise InputError(f"{name}: {self.column!r} holds {value!r}; it must be a text or a list of texts.")
        if dropped < self.dropout:
            return ""
        if self.shuffle:
            parts = [part.strip() for part in value.split(",")]
            value = ", ".join(parts[k] for k in torch.randperm(len(parts), generator=stream))
        return value


@dataclass
class PictureExamples:
    """Pictures, and texts where a task wants them.

    A batch holds, under "pixels" and the names of further pictures, tensors (batch, 3, height, width) in [-1, 1];
    under "ids" the tokens of every caption; under "frames" what was cut.

    Attributes:
        records: where they come from.
        framing: of the pictures of an example, all alike.
        pictures: name in the batch -> column.
        captions: how texts are chosen; None leaves them out.
        ranged: pictures that stay in [0, 1], as controls are.
        sizes: height and width of every example, in place of those of the framing; None gives all the same.
    """

    records: Records
    framing: Framing
    pictures: Mapping[str, str] = field(default_factory=lambda: {"pixels": "image"})
    captions: Captions | None = None
    ranged: Sequence[str] = ()
    sizes: Sequence[Size] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def bucket(self, least: int) -> list[list[int]]:
        """Give every example the size of about the same area that is nearest to its shape, and return who shares one.

        Args:
            least: examples that a size must have; the others go to the next nearest.
        """
        column = next(iter(self.pictures.values()))
        shapes = [shape(record, column) for record in self.records.rows]
        self.sizes = assign(shapes, plan(self.framing.height), least=least)
        members: dict[Size, list[int]] = {}
        for number, size in enumerate(self.sizes):
            members.setdefault(size, []).append(number)
        return [members[size] for size in sorted(members)]

    def example(self, number: int, stream: Stream) -> dict[str, Any]:
        """Return an example."""
        record = self.records.rows[number]
        opens = {name: opened(record.columns[column], record.name) for name, column in self.pictures.items()}
        framing = self.framing
        if self.sizes is not None:
            framing = replace(framing, height=self.sizes[number][0], width=self.sizes[number][1])
        try:
            tensors, frame = framing(opens, stream("frame"))
        except InputError as error:
            raise InputError(f"{record.name}: {error}") from error
        found: dict[str, Any] = {
            name: (tensor + 1) / 2 if name in self.ranged else tensor for name, tensor in tensors.items()
        }
        found["frames"] = frame
        if self.captions is not None:
            text = self.captions.text(record.columns, stream("caption"), record.name)
            found.update(self.captions.read(text))
        return found

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch."""
        columns = {name: [one[name] for one in examples] for name in examples[0]}
        return {name: torch.stack(rows) if isinstance(rows[0], Tensor) else rows for name, rows in columns.items()}


def shape(record: Record, column: str) -> Size:
    """Return the height and width of a record's picture: as a manifest says, or as the file does.

    Raises:
        InputError: when the file cannot be read.
    """
    if HASH in record.columns:
        return int(record.columns["height"]), int(record.columns["width"])
    try:
        return size_of(record.columns[column])
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{record.name} cannot be read as a picture ({error}).") from error


def sizes_of(frames: Sequence[Frame]) -> Tensor:
    """Return what Stable Diffusion XL is told of the sizes of a batch, (batch, 6): original, crop, target.

    The crop of a mirrored picture is told as if it had been mirrored before (Podell et al. 2023, 2307.01952, 2.2).
    """
    rows = [(*frame.original, *frame.corner, *frame.target) for frame in frames]
    return torch.tensor(rows, dtype=torch.float32)
