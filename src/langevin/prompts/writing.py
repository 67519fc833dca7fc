"""What the parsers share: fragments as they are written down, numbers, and errors that name a position."""

from __future__ import annotations

import math
import re

from ..core.errors import InputError
from .data import Chunk, Fragment, short

LIMIT = 1000.0
"""Weights beyond this are a slip or a deep nesting of brackets, not an intention."""

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*")
NUMBER_LIKE = re.compile(r"\s*[+-]?[\d.]*\d[\d.]*\s*")


def fault(source: str, position: int, what: str, cure: str) -> InputError:
    """Return the error for a prompt that cannot be read; `position` counts characters from 0."""
    start = max(position - 20, 0)
    around = ("..." if start else "") + source[start : position + 20] + ("..." if position + 20 < len(source) else "")
    return InputError(f"Prompt {short(source)}: {what} at character {position + 1} ({around!r}); {cure}.")


def number(text: str) -> float | None:
    """Return the number that a text is, spaces around it allowed, or None."""
    return float(text) if NUMBER.fullmatch(text) else None


def explicit_weight(source: str, position: int, text: str) -> float | None:
    """Return the weight written after a colon, or None when it is not a number at all.

    Raises:
        InputError: for what looks like a number and is none, such as `1.2.3`.
    """
    value = number(text)
    if value is None and NUMBER_LIKE.fullmatch(text):
        raise fault(source, position, f"{text.strip()!r} is no number", "write a weight such as 1.2")
    return value


class Writer:
    """Collects weighted text; neighbours of one weight become one fragment, a blank takes the weight before it.

    Raises:
        InputError: from `add`, for a weight beyond `LIMIT`.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.chunks: list[Chunk] = []
        self._chunk: list[Fragment] = []
        self._pieces: list[str] = []
        self._weight = 1.0

    def add(self, text: str, weight: float, *, at: int = 0) -> None:
        """Append text with a weight; `at` is where it stands in the source."""
        if not text:
            return
        if not abs(weight) <= LIMIT:
            cure = f"keep weights within {LIMIT:g}; brackets inside brackets multiply"
            raise fault(self.source, at, f"the weight {'infinity' if math.isinf(weight) else f'{weight:g}'}", cure)
        if self._pieces and weight != self._weight and not text.isspace():
            self._close_fragment()
        if not self._pieces:
            self._weight = weight
        self._pieces.append(text)

    def cut(self) -> None:
        """Start a new chunk."""
        self._close_fragment()
        self.chunks.append(tuple(self._chunk))
        self._chunk = []

    def finish(self) -> tuple[Chunk, ...]:
        """Return the chunks; one that a last `cut` left empty does not count."""
        self._close_fragment()
        if self._chunk or not self.chunks:
            self.cut()
        return tuple(self.chunks)

    def _close_fragment(self) -> None:
        if self._pieces:
            self._chunk.append(Fragment("".join(self._pieces), self._weight))
            self._pieces = []
