"""The picturebook's world: which scenes exist, how they are drawn at random, and how they become pictures.

A scene holds one or two kinds of thing from a fixed list, in ten colours, before six backgrounds, in five styles.
Relations are kept in one direction only ("left of", "above"); captions may say either direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError, check_choice
from .drawing import COLOUR_VALUES, paste, sprite
from .objects import DRAWERS
from .scenery import VARIANTS, scenery

KINDS: tuple[str, ...] = tuple(DRAWERS)
COLOURS: tuple[str, ...] = tuple(COLOUR_VALUES)
SIZES: tuple[str, ...] = ("small", "big")
RELATIONS: tuple[str, ...] = ("left of", "above")
BACKGROUNDS: tuple[str, ...] = ("meadow", "sea", "night", "snow", "desert", "plain")
STYLES: tuple[str, ...] = ("flat", "outline", "pixel", "pastel", "chalk")

STANDING: frozenset[str] = frozenset({"house", "tree", "boat", "fish", "car", "flower", "mushroom", "cat"})
"""Kinds that rest on the ground or the water; the others hang or fly a little higher in the picture."""

HELD_OUT_COLOURS: frozenset[tuple[str, str]] = frozenset(
    {
        ("green", "boat"),
        ("purple", "cat"),
        ("blue", "sun"),
        ("pink", "tree"),
        ("orange", "house"),
        ("black", "heart"),
        ("brown", "star"),
        ("white", "balloon"),
        ("red", "cloud"),
        ("yellow", "fish"),
        ("green", "moon"),
        ("purple", "car"),
    }
)
"""Pairs of colour and kind that are never drawn for training."""

HELD_OUT_RELATIONS: frozenset[tuple[str, str, str]] = frozenset(
    {
        ("cat", "above", "house"),
        ("boat", "left of", "tree"),
        ("balloon", "above", "car"),
        ("moon", "left of", "mushroom"),
    }
)
"""Triples of kind, relation and kind that are never drawn for training."""

_FREE = {kind: tuple(c for c in COLOURS if (c, kind) not in HELD_OUT_COLOURS) for kind in KINDS}


@dataclass(frozen=True)
class Thing:
    """A kind of thing in a scene: `count` copies (1 or 2, side by side) around the centre (x, y).

    x, y and `extent`, the side of one copy, are shares of the picture's side.
    """

    kind: str
    colour: str
    size: str
    count: int
    x: float
    y: float
    extent: float

    @property
    def centres(self) -> tuple[tuple[float, float], ...]:
        """The centre of every copy, from left to right."""
        return tuple((self.x + offset, self.y) for offset in ((0.0,) if self.count == 1 else (-0.235, 0.235)))


@dataclass(frozen=True)
class Scene:
    """What a picture shows. With two things, `things[0]` is `relation` (left of, above) `things[1]`."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    style: str
    seed: int = 0

    @property
    def moonlit(self) -> bool:
        """Whether things are seen against a dark sky."""
        return self.background == "night" and self.style != "outline"


def is_held_out(scene: Scene) -> bool:
    """Tell whether a scene shows a combination that training never sees."""
    if any((thing.colour, thing.kind) in HELD_OUT_COLOURS for thing in scene.things):
        return True
    kinds = tuple(thing.kind for thing in scene.things)
    return len(kinds) == 2 and (kinds[0], scene.relation, kinds[1]) in HELD_OUT_RELATIONS


def _extent(rng: np.random.Generator, size: str, *, alone: bool) -> float:
    """Return a side as a share of the picture: whole sixty-fourths, even, so that every size shares its sprites."""
    low, high = {
        ("big", True): (30, 36),
        ("small", True): (18, 22),
        ("big", False): (24, 28),
        ("small", False): (18, 20),
    }[(size, alone)]
    return 2 * int(rng.integers(low // 2, high // 2 + 1)) / 64


def _jitter(rng: np.random.Generator, reach: int) -> float:
    return int(rng.integers(-reach, reach + 1)) / 64


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _alone(rng: np.random.Generator, kind: str, colour: str) -> Thing:
    """Place a single kind of thing, one or two copies."""
    height = 0.58 if kind in STANDING else 0.45
    size = "small" if rng.random() < 0.3 else "big"
    if rng.random() < 0.25:
        extent = _extent(rng, size, alone=False)
        return Thing(kind, colour, size, 2, 0.5 + _jitter(rng, 2), height + _jitter(rng, 4), extent)
    reach = 5 if size == "big" else 9
    return Thing(
        kind, colour, size, 1, 0.5 + _jitter(rng, reach), height + _jitter(rng, 4), _extent(rng, size, alone=True)
    )


def _together(
    rng: np.random.Generator, kinds: tuple[str, str], colours: tuple[str, str], relation: str
) -> tuple[Thing, Thing]:
    """Place two things so that the first is left of or above the second."""
    placed = []
    for index, (kind, colour) in enumerate(zip(kinds, colours, strict=True)):
        size = "small" if rng.random() < 0.2 else "big"
        if relation == "left of":
            x, y = (0.27, 0.73)[index], 0.58 if kind in STANDING else 0.46
            x, y = x + _jitter(rng, 1), y + _jitter(rng, 3)
        else:
            x, y = 0.5 + _jitter(rng, 4), (0.27, 0.73)[index] + _jitter(rng, 1)
        placed.append(Thing(kind, colour, size, 1, x, y, _extent(rng, size, alone=False)))
    return placed[0], placed[1]


def _setting(rng: np.random.Generator) -> tuple[str, str]:
    """Draw a background (plain for a quarter) and a style (flat for three fifths)."""
    background = "plain" if rng.random() < 0.25 else _pick(rng, BACKGROUNDS[:-1])
    style = "flat" if rng.random() < 0.6 else _pick(rng, STYLES[1:])
    return background, style


def _free_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene that avoids the held-out colours; the caller checks the held-out relations."""
    background, style = _setting(rng)
    seed = int(rng.integers(2**31))
    first = _pick(rng, KINDS)
    if rng.random() < 0.5:
        return Scene((_alone(rng, first, _pick(rng, _FREE[first])),), None, background, style, seed)
    second = _pick(rng, tuple(kind for kind in KINDS if kind != first))
    colours = (_pick(rng, _FREE[first]), _pick(rng, _FREE[second]))
    relation = _pick(rng, RELATIONS)
    return Scene(_together(rng, (first, second), colours, relation), relation, background, style, seed)


def _held_out_scene(rng: np.random.Generator) -> Scene:
    """Draw a held-out scene: half single things, a third pairs with a held-out colour, the rest held-out relations."""
    background, style = _setting(rng)
    seed = int(rng.integers(2**31))
    colour, kind = sorted(HELD_OUT_COLOURS)[int(rng.integers(len(HELD_OUT_COLOURS)))]
    choice = rng.random()
    if choice < 0.5:
        return Scene((_alone(rng, kind, colour),), None, background, style, seed)
    relation = _pick(rng, RELATIONS)
    other = _pick(rng, tuple(k for k in KINDS if k != kind))
    kinds, colours = (kind, other), (colour, _pick(rng, _FREE[other]))
    if rng.random() < 0.5:
        kinds, colours = kinds[::-1], colours[::-1]
    if choice >= 5 / 6:
        left, relation, right = sorted(HELD_OUT_RELATIONS)[int(rng.integers(len(HELD_OUT_RELATIONS)))]
        kinds, colours = (left, right), (_pick(rng, _FREE[left]), _pick(rng, _FREE[right]))
    return Scene(_together(rng, kinds, colours, relation), relation, background, style, seed)


def sample_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Draw a scene: about half show one kind of thing, half two things in a relation.

    `held_out=False` never returns a held-out combination, `held_out=True` returns nothing else.
    """
    if held_out:
        return _held_out_scene(rng)
    while True:
        scene = _free_scene(rng)
        if not is_held_out(scene):
            return scene


def _check(scene: Scene, size: int) -> None:
    if size < 64 or size % 64:
        raise InputError(
            f"size is {size}; a picture's side is a positive multiple of 64, for example {max(64, size // 64 * 64)}"
        )
    check_choice("background", scene.background, BACKGROUNDS)
    check_choice("style", scene.style, STYLES)
    for thing in scene.things:
        check_choice("kind", thing.kind, KINDS)
        check_choice("colour", thing.colour, COLOURS)


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Draw a scene as uint8 of shape (size, size, 3); the same scene always gives the same picture.

    `size` is a multiple of 64. Raises InputError for another size or an unknown kind, colour, background or style.
    """
    _check(scene, size)
    unit = size // 64
    block = 2 * unit if scene.style == "pixel" else 1
    canvas = scenery(scene.background, scene.style, scene.seed % VARIANTS, size).copy()
    copy = 0
    for thing in scene.things:
        pixels = 2 * unit * round(thing.extent * size / (2 * unit))
        drawn = sprite(thing.kind, thing.colour, scene.style, pixels, scene.moonlit, unit)
        for x, y in thing.centres:
            left, top = round(x * size - pixels / 2), round(y * size - pixels / 2)
            mirrored = bool((scene.seed >> (8 + copy)) & 1)
            paste(canvas, drawn, left // block * block, top // block * block, mirrored=mirrored)
            copy += 1
    return canvas
