"""Short ways to look at parsed prompts."""

from __future__ import annotations

from langevin.prompts.data import Fragment, Passage
from langevin.prompts.syntax import parse


def only(text: str, syntax: str | None, step: int = 0, steps: int | None = 1):
    """Return the text of the single member of a prompt."""
    (member,) = parse(text, syntax).at(step, steps)
    return member.text


def chunks(passage: Passage) -> list[list[tuple[str, float]]]:
    """Return a passage as lists of (text, weight), blanks at the edges of texts removed and weights rounded."""
    return [[(f.text.strip(), round(f.weight, 4)) for f in chunk if f.text.strip()] for chunk in passage.chunks]


def weights(text: str, syntax: str, step: int = 0, steps: int | None = 1) -> list[tuple[str, float]]:
    """Return the (text, weight) pairs of a prompt with one member and one chunk."""
    (chunk,) = chunks(only(text, syntax, step, steps))
    return chunk


def texts(text: str, steps: int) -> list[str]:
    """Return what an A1111 prompt says at every step."""
    return [only(text, "a1111", step, steps).text.strip() for step in range(steps)]


def one(text: str, weight: float = 1.0) -> Passage:
    """Return a plain passage of one fragment."""
    return Passage(((Fragment(text, weight),),))
