"""Shapes that are nothing: what a poor picture shows where a thing should be. The checker learns to refuse them."""

from __future__ import annotations

import math

import numpy as np

from .drawing import OVERSAMPLING, Pen, averaged, contoured, palette, paste, sprite
from .world import COLOURS, KINDS, Scene, Thing

UNKNOWN = "unknown"
"""The kind of a decoy; no prompt can ask for it."""


def blob(rng: np.random.Generator, colour: str, pixels: int, *, style: str, moonlit: bool) -> np.ndarray:
    """Return a random rounded lump with a few spots, premultiplied RGBA floats of shape (pixels, pixels, 4)."""
    pen = Pen(pixels * OVERSAMPLING, palette(colour, style, moonlit))
    corners = int(rng.integers(4, 10))
    turn = rng.uniform(0, 2 * math.pi)
    points = []
    for k, radius in enumerate(rng.uniform(0.2, 0.48, corners)):
        angle = turn + 2 * math.pi * k / corners
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    (pen.blob if rng.random() < 0.7 else pen.poly)(points, "body")
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0.35, 0.65, 2)
        tone = ("light", "dark", "eye", "cream", "lamp", "wood")[int(rng.integers(6))]
        pen.ellipse(float(x), float(y), float(rng.uniform(0.03, 0.12)), float(rng.uniform(0.03, 0.12)), tone)
    return averaged(contoured(pen.image, 0.75 * OVERSAMPLING, pen.tones["contour"]), pixels)


def chimera(
    rng: np.random.Generator, colour: str, pixels: int, *, style: str, moonlit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return half of one thing joined to half of another, or to nothing, as a sprite."""
    first, second = (KINDS[int(k)] for k in rng.choice(len(KINDS), 2, replace=False))
    ramp = np.linspace(-1, 1, pixels)
    side = ramp[None, :] + float(rng.choice([-1.0, 0.0, 1.0])) * ramp[:, None]
    here = (side < 0)[..., None]
    colour_a, rest_a = sprite(first, colour, style, pixels, moonlit, 1)
    colour_b, rest_b = sprite(second, colour, style, pixels, moonlit, 1)
    if rng.random() < 0.2:
        return np.where(here, colour_a, 0), np.where(here, rest_a, 255).astype(np.uint16)
    return np.where(here, colour_a, colour_b), np.where(here, rest_a, rest_b)


def add_decoy(canvas: np.ndarray, thing: Thing, scene: Scene, rng: np.random.Generator) -> None:
    """Draw a decoy of a thing's colour, place and extent into a 64-pixel picture, in place."""
    pixels = 2 * round(thing.extent * 32)
    if rng.random() < 0.5:
        drawn = chimera(rng, thing.colour, pixels, style=scene.style, moonlit=scene.moonlit)
    else:
        whole = np.round(blob(rng, thing.colour, pixels, style=scene.style, moonlit=scene.moonlit)).astype(np.uint16)
        drawn = whole[..., :3], 255 - whole[..., 3:]
    left, top = round(thing.x * 64 - pixels / 2), round(thing.y * 64 - pixels / 2)
    paste(canvas, drawn, left, top, mirrored=bool(rng.integers(2)))


def random_thing(rng: np.random.Generator, x: float, y: float, extent: float, *, odd: float) -> Thing:
    """Return a thing of any kind and colour at a place, a decoy with probability `odd` where it is large enough."""
    decoy = extent >= 22 / 64 and rng.random() < odd
    kind = UNKNOWN if decoy else KINDS[int(rng.integers(len(KINDS)))]
    return Thing(kind, COLOURS[int(rng.integers(len(COLOURS)))], "big", 1, x, y, extent)
