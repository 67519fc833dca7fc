"""Examples on their way into a batch: framed pictures and token ids, every random part decided by the position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.records import HASH, Record, Records
from ..streams import Stream
from .buckets import Size, assign, plan
from .framing import Frame, Framing, opened, size_of
from .shelf import Shelf

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


@dataclass(frozen=True)
class Encoded:
    """Latents of the pictures of a set, which its examples bring in their place.

    Attributes:
        shelf: where they lie.
        shapes: height and width of the pictures of every example, before they were framed.
        keys: name in the batch -> of every example, the entries of its picture as it is and mirrored.
    """

    shelf: Shelf
    shapes: Sequence[Size]
    keys: Mapping[str, Sequence[tuple[str, ...]]]


@dataclass
class PictureExamples:
    """Pictures, and texts where a task wants them.

    A batch holds, under "pixels" and the names of further pictures, tensors (batch, 3, height, width) in [-1, 1];
    under "ids" the tokens of every caption, and under "said" what they are known by; under "frames" what was cut.
    In place of encoded pictures it holds their "mean" and "std", (batch, channels, height, width).

    Attributes:
        records: where they come from.
        framing: of the pictures of an example, all alike.
        pictures: name in the batch -> column.
        captions: how texts are chosen; None leaves them out.
        ranged: pictures that stay in [0, 1], as controls are.
        sizes: height and width of every example, in place of those of the framing; None gives all the same.
        encoded: latents that stand for pictures; None has every picture decoded.
        rows: of a batch, that an example brings.
    """

    records: Records
    framing: Framing
    pictures: Mapping[str, str] = field(default_factory=lambda: {"pixels": "image"})
    captions: Captions | None = None
    ranged: Sequence[str] = ()
    sizes: Sequence[Size] | None = None
    encoded: Encoded | None = None
    rows: ClassVar[int] = 1

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
        record, known = self.records.rows[number], self.encoded
        keys = {} if known is None else {name: rows[number] for name, rows in known.keys.items()}
        opens = {
            name: opened(record.columns[column], record.name)
            for name, column in self.pictures.items()
            if name not in keys
        }
        try:
            size = None if known is None else known.shapes[number]
            tensors, frame = self.framing_of(number)(opens, stream("frame"), size)
        except InputError as error:
            raise InputError(f"{record.name}: {error}") from error
        found: dict[str, Any] = {
            name: (tensor + 1) / 2 if name in self.ranged else tensor for name, tensor in tensors.items()
        }
        if known is not None:
            found |= {name: known.shelf.read(own[frame.mirrored]) for name, own in keys.items()}
        found["frames"] = frame
        if self.captions is not None:
            text = self.captions.text(record.columns, stream("caption"), record.name)
            found.update(self.captions.read(text))
        return found

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch."""
        batch = {name: stacked([one[name] for one in examples]) for name in examples[0]}
        if self.captions is None:
            return batch
        tokens = [[one[name] for name in sorted(one) if name.startswith("ids")] for one in examples]
        return {**batch, "said": [b"".join(ids.numpy().tobytes() for ids in row) for row in tokens]}

    def framing_of(self, number: int) -> Framing:
        """Return the framing of an example."""
        if self.sizes is None:
            return self.framing
        return replace(self.framing, height=self.sizes[number][0], width=self.sizes[number][1])

    def framed(self, number: int, name: str, *, mirrored: bool) -> Tensor:
        """Return the middle of a picture of an example, (3, height, width) in [-1, 1]."""
        record = self.records.rows[number]
        framing = replace(self.framing_of(number), centre=True)
        picture = opened(record.columns[self.pictures[name]], record.name)
        frame = framing.place((picture.height, picture.width), torch.Generator())
        return framing.cut(picture, replace(frame, mirrored=mirrored))

    def sets(self) -> list[PictureExamples]:
        """Return the sets of pictures that it consists of: itself."""
        return [self]


def stacked(rows: Sequence[Any]) -> Any:
    """Return the values of several examples as one: tensors, or tensors by name, along a new first dimension."""
    if isinstance(rows[0], Tensor):
        return torch.stack(list(rows))
    if isinstance(rows[0], Mapping):
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return rows


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
