"""What a parsed prompt is: weighted texts in chunks, and which of them holds at which step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..core.errors import InputError


@dataclass(frozen=True)
class Fragment:
    """A piece of text and its weight; 1 leaves it as it is."""

    text: str
    weight: float = 1.0


Chunk = tuple[Fragment, ...]
"""Fragments that the encoder reads together, as far as they fit."""


@dataclass(frozen=True)
class Passage:
    """One text as an encoder reads it.

    Attributes:
        chunks: at least one; a later one starts where the prompt says so (BREAK).
        syntax: name of the syntax whose arithmetic the weights stand for; empty for text without weights.
    """

    chunks: tuple[Chunk, ...]
    syntax: str = ""

    @property
    def text(self) -> str:
        """The text without weights and syntax."""
        return " ".join("".join(fragment.text for fragment in chunk) for chunk in self.chunks)

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(fragment.weight != 1.0 for chunk in self.chunks for fragment in chunk)


@dataclass(frozen=True)
class Blend:
    """The weighted sum of the embeddings of several passages.

    Attributes:
        normalize: divide the sum by the sum of the weights.
    """

    parts: tuple[Passage, ...]
    weights: tuple[float, ...]
    normalize: bool = True


@dataclass(frozen=True)
class Join:
    """The embeddings of several passages one after the other; a weight below 1 pulls a part to the empty prompt."""

    parts: tuple[Passage, ...]
    weights: tuple[float, ...]


Text = Passage | Blend | Join


@dataclass(frozen=True)
class Member:
    """A condition of its own, and its share in the guidance (AND)."""

    text: Text
    weight: float = 1.0


Prompt = tuple[Member, ...]
"""What holds at one step: one member, or several joined by AND."""

EMPTY = Passage(((),))


@dataclass(frozen=True)
class Timeline:
    """The prompts of a run without repetition, and for every step which one holds."""

    prompts: tuple[Prompt, ...]
    index: tuple[int, ...]


@dataclass(frozen=True)
class Script:
    """A parsed prompt.

    Attributes:
        source: as it was written.
        changes: whether it depends on the step.
    """

    source: str
    resolve: Callable[[int, int], Prompt] = field(repr=False, compare=False)
    changes: bool = False

    def at(self, step: int = 0, steps: int | None = None) -> Prompt:
        """Return what holds at a step, counted from 0, of `steps`.

        Raises:
            InputError: when the prompt changes in the course of the steps and their number is not given.
        """
        if self.changes and steps is None:
            raise InputError(
                f"The prompt {short(self.source)} changes between steps; say how many there are (`steps`), "
                "or write it without [from:to:when] and [a|b]."
            )
        return self.resolve(step, steps or 1)

    def timeline(self, steps: int | None = None) -> Timeline:
        """Return the prompts of all steps; one entry serves all when nothing changes."""
        if not self.changes:
            return Timeline((self.at(),), (0,) * (steps or 1))
        found: dict[Prompt, int] = {}
        index = tuple(found.setdefault(self.at(step, steps), len(found)) for step in range(steps or 1))
        return Timeline(tuple(found), index)


def short(text: str, length: int = 60) -> str:
    """Return a text in quotation marks, cut for an error message."""
    return repr(text if len(text) <= length else f"{text[:length]}...")
