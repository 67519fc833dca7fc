"""Edges of pictures, what a ControlNet is given, and how well a picture's edges agree with wanted ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import InputError
from ..core.images import from_array
from ..pipelines.control_images import canny
from .captions import describe
from .world import COLOURS, HELD_OUT_COLOURS, Scene, render, sample_scene

THRESHOLDS = ((50, 100), (100, 200))
"""Pairs of Canny's thresholds: with the first, all outlines and no textures; the second is `canny`'s usual one."""

TOLERANCE = 1
"""How many pixels an edge may lie beside the wanted one and still agree with it."""

FRESH = 1_000_003
"""Seeds scenes apart from the training set, whose chunks are numbered from 0."""


def edges(pictures: np.ndarray, thresholds: tuple[float, float] = THRESHOLDS[0]) -> np.ndarray:
    """Return the edges of pictures: uint8 of shape (n, height, width, 3) to bool of shape (n, height, width)."""
    return np.stack([np.asarray(outline) > 0 for outline in canny(pictures, *thresholds)])


def condition(outlines: Tensor) -> Tensor:
    """Return edges (n, height, width), bool, as a ControlNet takes them: (n, 3, height, width), 0 and 1."""
    return outlines[:, None].float().repeat(1, 3, 1, 1)


def outline_picture(outline: np.ndarray) -> Any:
    """Return edges (height, width), bool, as a PIL picture in white on black, as pipelines take them."""
    return from_array(np.repeat(outline[None, ..., None], 3, axis=-1).astype(np.float32))[0]


@dataclass(frozen=True)
class Task:
    """A scene that training has not drawn.

    Attributes:
        caption: what the scene shows.
        recoloured: the caption of the same scene with other colours.
        picture: uint8 of shape (64, 64, 3).
        outline: the picture's edges, bool of shape (64, 64).
    """

    caption: str
    recoloured: str
    picture: np.ndarray
    outline: np.ndarray


def _recoloured(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with another colour, not held out, for every thing."""
    things = []
    for thing in scene.things:
        barred = {thing.colour, *(colour for colour, kind in HELD_OUT_COLOURS if kind == thing.kind)}
        free = [colour for colour in COLOURS if colour not in barred]
        things.append(replace(thing, colour=free[int(rng.integers(len(free)))]))
    return replace(scene, things=tuple(things))


def tasks(count: int, *, seed: int = 0) -> list[Task]:
    """Return `count` fresh scenes with their edges; the first ones are the same for every count."""
    rng = np.random.default_rng([seed, FRESH])
    made = []
    for _ in range(count):
        scene = sample_scene(rng)
        other = _recoloured(scene, rng)
        picture = render(scene)
        made.append(Task(describe(scene, rng), describe(other, rng), picture, edges(picture[None])[0]))
    return made


def _widened(outlines: Tensor) -> Tensor:
    """Return edges grown by `TOLERANCE` pixels in all eight directions."""
    return F.max_pool2d(outlines[:, None].float(), 2 * TOLERANCE + 1, 1, TOLERANCE)[:, 0] > 0


def agreement(made: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how well edges agree, a number from 0 to 1 for each pair, float64 of shape (n,).

    It is the F1 of the share of edges made that lie within `TOLERANCE` pixels of a wanted one, and the share of wanted
    edges that lie that near to one made (Martin, Fowlkes and Malik 2004, 10.1109/TPAMI.2004.1273918, without their
    one-to-one matching). Two pictures without any edge agree.

    Args:
        made, wanted: bool of shape (n, height, width).

    Raises:
        InputError: the shapes differ.
    """
    if made.shape != wanted.shape:
        raise InputError(f"edges of shapes {made.shape} and {wanted.shape} cannot be compared; make them alike")
    mine, theirs = torch.from_numpy(made), torch.from_numpy(wanted)
    count, asked = mine.sum((1, 2)).double(), theirs.sum((1, 2)).double()
    precision = (mine & _widened(theirs)).sum((1, 2)) / count.clamp(min=1)
    recall = (theirs & _widened(mine)).sum((1, 2)) / asked.clamp(min=1)
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return torch.where(count + asked == 0, 1.0, score).numpy()
