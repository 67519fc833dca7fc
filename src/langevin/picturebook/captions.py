"""The picturebook's little language: scenes become captions, and prompts become requests.

A caption is: thing [relation thing] [setting] [style],
for example "a small blue bird above a green tree, night, chalk style".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError, nearest
from .world import BACKGROUNDS, COLOURS, KINDS, STYLES, Scene, Thing

PLURALS: dict[str, str] = {kind: kind + "s" for kind in KINDS} | {"fish": "fish"}

SETTINGS: dict[str, tuple[str, ...]] = {
    "meadow": (", meadow", " in a meadow"),
    "sea": (", sea", " by the sea"),
    "night": (", night", " at night"),
    "snow": (", snow", " in the snow"),
    "desert": (", desert", " in the desert"),
    "plain": (", plain", ", plain background"),
}

MANNERS: dict[str, tuple[str, ...]] = {
    style: (f"{style} style", f"in {style} style") if style != "pixel" else ("pixel style", "pixel art")
    for style in STYLES
}

PHRASES: dict[str, tuple[str, bool]] = {
    "left of": ("left of", True),
    "to the left of": ("left of", True),
    "right of": ("left of", False),
    "to the right of": ("left of", False),
    "above": ("above", True),
    "over": ("above", True),
    "below": ("above", False),
    "under": ("above", False),
}
"""Relation phrases: the kept relation, and whether the thing named first stays first."""

_SIZE_WORDS = {"small": "small", "little": "small", "tiny": "small", "big": "big", "large": "big"}
_COUNT_WORDS = {"a": 1, "an": 1, "one": 1, "the": 1, "two": 2}
_COLOUR_WORDS = {colour: colour for colour in COLOURS}
_KIND_WORDS = {kind: kind for kind in KINDS} | {plural: kind for kind, plural in PLURALS.items()}
_LINKS = ("of", "to", "in", "at", "by", "on", "with", "left", "right", "above", "over", "below", "under")
_FILLERS = ("style", "art", "background")
_TOPICS = (KINDS, COLOURS, BACKGROUNDS, STYLES, tuple(PHRASES))


@dataclass(frozen=True)
class Wish:
    """One thing that a prompt asks for; None where the prompt leaves it open."""

    kind: str
    colour: str | None = None
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Request:
    """What a prompt asks for. With two things, `things[0]` is `relation` (left of, above) `things[1]`."""

    things: tuple[Wish, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _name(thing: Thing, rng: np.random.Generator) -> str:
    """Name a thing: small is always said, big now and then."""
    words = [thing.colour, thing.kind if thing.count == 1 else PLURALS[thing.kind]]
    if thing.size == "small":
        words.insert(0, "small" if rng.random() < 0.8 else "little")
    elif rng.random() < 0.2:
        words.insert(0, "big")
    return " ".join(["two" if thing.count == 2 else _article(words[0]), *words])


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Say what a scene shows, in one of several wordings.

    Plain backgrounds and the flat style usually go unsaid; everything else is always said.
    """
    names = [_name(thing, rng) for thing in scene.things]
    text = names[0]
    if scene.relation is not None:
        phrases = [phrase for phrase, (relation, _) in PHRASES.items() if relation == scene.relation]
        phrase = phrases[int(rng.integers(len(phrases)))]
        first, second = names if PHRASES[phrase][1] else names[::-1]
        text = f"{first} {phrase} {second}"
    if scene.background != "plain" or rng.random() < 0.15:
        short, long = SETTINGS[scene.background]
        text += short if rng.random() < 0.6 else long
    if scene.style != "flat" or rng.random() < 0.1:
        text += ", " + MANNERS[scene.style][int(rng.random() < 0.3)]
    return text


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Return every word that a prompt may use, sorted."""
    words = {*_SIZE_WORDS, *_COUNT_WORDS, *_COLOUR_WORDS, *_KIND_WORDS, *BACKGROUNDS, *STYLES, *_LINKS, *_FILLERS}
    return tuple(sorted(words))


def _wish(words: list[str], text: str) -> Wish:
    """Read one thing from its words, for example ["two", "small", "red", "fish"]."""
    kind = colour = size = None
    count = 1
    for word in words:
        if word in _COUNT_WORDS:
            count = _COUNT_WORDS[word]
        elif word in _SIZE_WORDS:
            size = _SIZE_WORDS[word]
        elif word in _COLOUR_WORDS and colour is None and kind is None:
            colour = word
        elif word in _KIND_WORDS and kind is None:
            kind = _KIND_WORDS[word]
        else:
            raise InputError(
                f"{word!r} is out of place in {text!r}; write a thing as 'a small red house' or 'two red fish'"
            )
    if kind is None:
        raise InputError(f"{text!r} names no thing where one is expected; the things are {', '.join(KINDS)}")
    return Wish(kind, colour, size, count)


def _take(text: str, keys: Iterable[str], before: str, after: str) -> tuple[str, str | None]:
    """Cut the first key, with the small words around it, out of `text`; return what is left and the key."""
    for key in keys:
        found = re.search(rf"\b(?:(?:{before}) )?(?:(?:the|a|an) )?{key}(?: (?:{after}))?\b", text)
        if found:
            return f"{text[: found.start()]} , {text[found.end() :]}", key
    return text, None


def parse(text: str) -> Request:
    """Read a prompt into a request, relations brought to "left of" and "above".

    Raises InputError for a word outside the vocabulary (naming the nearest known one), for a prompt without a thing,
    and for word orders the grammar does not know.
    """
    plain = re.sub(r"[.,;!]+", " , ", text.lower())
    known = set(vocabulary())
    for word in plain.replace(",", " ").split():
        if word not in known:
            close = nearest(word, known)
            hint = f"did you mean {close!r}?" if close else f"it knows {'; '.join(map(', '.join, _TOPICS))}"
            raise InputError(f"the picturebook does not know the word {word!r}; {hint}")
    rest, style = _take(plain, STYLES, "in", "style|art")
    rest, background = _take(rest, BACKGROUNDS, "in|on|at|by|with", "background")
    phrase = next((p for p in sorted(PHRASES, key=len, reverse=True) if re.search(rf"\b{p}\b", rest)), None)
    parts = re.split(rf"\b{phrase}\b", rest, maxsplit=1) if phrase else [rest]
    things = tuple(_wish(part.replace(",", " ").split(), text) for part in parts)
    if phrase is None:
        return Request(things, None, background, style)
    relation, forward = PHRASES[phrase]
    return Request(things if forward else things[::-1], relation, background, style)


def request_of(scene: Scene) -> Request:
    """Return the request that a scene fulfils exactly."""
    things = tuple(Wish(thing.kind, thing.colour, thing.size, thing.count) for thing in scene.things)
    return Request(things, scene.relation, scene.background, scene.style)
