"""A purple cat, which the model's training never showed, to be learned, and prompts for it and for other cats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..captions import describe
from ..checker import check
from ..unseen import LOOK
from ..world import COLOURS, HELD_OUT_COLOURS, Scene, Thing, render, sample_scene
from .common import drawn, shows

COLOUR, KIND = LOOK
"""The subject: a colour and a kind that never come together in the model's own training."""


@dataclass(frozen=True)
class Case:
    """A prompt, what the checker is asked of its picture, and the colour of the cat."""

    text: str
    wish: str
    colour: str


@dataclass(frozen=True)
class Judged:
    """Of every prompt whether its cat is shown, whether all that it asks for is right, and the picture."""

    shown: list[bool]
    right: list[bool]
    pictures: list[Any]


def subject(count: int, colour: str = COLOUR, kind: str = KIND) -> list[np.ndarray]:
    """Return pictures of the purple cat, or of another thing, alone, big, in several places of a plain picture.

    The captions that the model knows say every other background, so that of a picture whose caption says none is plain.
    """
    scenes = []
    for k in range(count):
        x, y = 0.5 + (k % 3 - 1) * 4 / 64, 0.58 + (k % 2) * 3 / 64
        thing = Thing(kind, colour, "big", 1, x, y, (30 + 2 * (k % 4)) / 64)
        scenes.append(Scene((thing,), None, "plain", "flat", 257 * k))
    return [render(scene) for scene in scenes]


def cases(count: int, words: str | None = None, seed: int = 0) -> list[Case]:
    """Return fixed prompts of cats alone and beside other things, before all backgrounds.

    Args:
        words: what the purple cat is called; None asks for cats of the colours that training shows instead.
    """
    rng = np.random.default_rng([seed, 11])
    known = [colour for colour in COLOURS if (colour, KIND) not in HELD_OUT_COLOURS]
    found: list[Case] = []
    while len(found) < count:
        scene = sample_scene(rng)
        if any(thing.kind == KIND for thing in scene.things[1:]):
            continue
        colour = known[len(found) % len(known)] if words is None else COLOUR
        first = replace(scene.things[0], kind=KIND, colour=colour, count=1)
        wish = describe(replace(scene, things=(first, *scene.things[1:]), style="flat"), rng)
        text = wish if words is None else wish.replace(f"{COLOUR} {KIND}", words)
        found.append(Case(text, wish, colour))
    return found


def judged(pipe: Any, asked: Sequence[Case], seed: int) -> Judged:
    """Let a pipeline draw prompts and the checker judge; picture k has the seed `seed` + k."""
    pictures = drawn(pipe, [case.text for case in asked], seed)
    right = [verdict.all_right for verdict in check(pictures, [case.wish for case in asked])]
    return Judged(shows(pictures, KIND, [case.colour for case in asked]), right, pictures)
