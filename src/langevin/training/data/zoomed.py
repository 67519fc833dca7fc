"""Pictures at sizes that are drawn, with captions that say so, and the place of the picture in the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..streams import Stream
from .examples import PictureExamples

WORDS = {"small": ("very small", "far away"), "large": ("zoomed in", "close up")}
"""What the caption says of a picture that is drawn small or large; one of them is drawn."""
SMALL, LARGE = 0.6, 1.2
"""Below and above these shares of the frame a caption says it."""


@dataclass
class Zoomed:
    """Pictures that fill a drawn part of the frame, or show a part of themselves (Kumari et al. 2023, 2212.04488).

    A batch also holds under "where" which pixels belong to the picture, (rows, 1, height, width); the rest is grey.

    Attributes:
        pictures: the examples.
        sizes: lowest and highest size, as a share of the frame.
    """

    pictures: PictureExamples
    sizes: tuple[float, float] = (0.4, 1.4)

    def __len__(self) -> int:
        return len(self.pictures)

    def example(self, number: int, stream: Stream) -> dict[str, Any]:
        """Return an example."""
        share, top, left, choice = torch.rand(4, generator=stream("zoom"), dtype=torch.float64).tolist()
        size = self.sizes[0] + share * (self.sizes[1] - self.sizes[0])
        frame, captions = self.pictures.framing, self.pictures.captions
        said = WORDS["small"] if size < SMALL else WORDS["large"] if size > LARGE else None
        if captions is not None and said is not None:
            plain, more = captions.words, said[int(choice * len(said))]
            captions = replace(captions, words=lambda text: plain(f"{text}, {more}"))
        framing = replace(frame, height=max(1, round(size * frame.height)), width=max(1, round(size * frame.width)))
        found = replace(self.pictures, framing=framing, captions=captions).example(number, stream)
        pixels, where = placed(found["pixels"], (frame.height, frame.width), (top, left))
        return {**found, "pixels": pixels, "where": where}

    def collate(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return a batch."""
        return self.pictures.collate(examples)


def placed(picture: Tensor, size: tuple[int, int], chances: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return a picture (3, height, width) inside a grey frame, or a part of it where it is larger, and where it is.

    Args:
        size: height and width of the frame.
        chances: of the place from top to bottom and from left to right, in [0, 1).
    """
    (rows, own_rows), (columns, own_columns) = (
        _span(inner, outer, chance) for inner, outer, chance in zip(picture.shape[1:], size, chances, strict=True)
    )
    frame, where = picture.new_zeros(3, *size), picture.new_zeros(1, *size)
    frame[:, rows, columns] = picture[:, own_rows, own_columns]
    where[:, rows, columns] = 1
    return frame, where


def _span(inner: int, outer: int, chance: float) -> tuple[slice, slice]:
    """Return which part of `outer` places which part of `inner` ones takes."""
    first = int(chance * (abs(outer - inner) + 1))
    if inner <= outer:
        return slice(first, first + inner), slice(inner)
    return slice(outer), slice(first, first + outer)
