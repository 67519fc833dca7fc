"""Tells what a picture shows and whether a prompt was fulfilled, with the small network of `detector`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..core.errors import InputError, WeightsError
from .captions import Request, Wish, parse
from .data import signed
from .detector import GRID, LABELS, SIDE, Detector
from .world import BACKGROUNDS, COLOURS, STYLES

WEIGHTS = Path(__file__).with_name("weights") / "checker.safetensors"


@dataclass(frozen=True)
class Found:
    """A thing seen in a picture; x and y are shares of the picture's side, `confidence` lies between 0 and 1.

    `kind` is "unknown" for a shape that is none of the picturebook's things.
    """

    kind: str
    colour: str
    x: float
    y: float
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """How a picture answers a prompt.

    `kinds_right`: exactly the wanted things, in the wanted number, and nothing else. `colours_right` and
    `relation_right` imply it. `all_right` is all three; background and style are judged apart. What the prompt leaves
    open counts as right.
    """

    kinds_right: bool
    colours_right: bool
    relation_right: bool
    background_right: bool
    style_right: bool
    all_right: bool
    found: tuple[Found, ...]
    background: str
    style: str


@dataclass(frozen=True)
class Sight:
    """What the detector reads from one picture."""

    found: tuple[Found, ...]
    background: str
    style: str


# Reading a picture


def to_pictures(images: Any) -> torch.Tensor:
    """Return images as float tensor (N, 3, 64, 64) in [-1, 1].

    Accepts a list of PIL images or uint8 arrays (H, W, 3), a uint8 array (N, H, W, 3), a float array (N, H, W, 3) in
    [0, 1], or a float tensor (N, 3, H, W) in [-1, 1]. Raises InputError for anything else.
    """
    if isinstance(images, torch.Tensor):
        pictures = images.detach().float().cpu()
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InputError(f"a tensor of pictures has the shape (N, 3, H, W), not {tuple(images.shape)}")
    else:
        array = np.stack([np.asarray(image) for image in images])
        if array.ndim != 4 or array.shape[-1] != 3:
            raise InputError(f"pictures have the shape (N, H, W, 3), not {array.shape}; convert them to RGB first")
        if array.dtype == np.uint8:
            pictures = signed(array)
        else:
            pictures = torch.from_numpy(array.astype(np.float32) * 2 - 1).permute(0, 3, 1, 2)
    if pictures.shape[-2:] != (SIDE, SIDE):
        pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return pictures.contiguous()


@functools.lru_cache(maxsize=2)
def load_detector(path: Path = WEIGHTS) -> Detector:
    """Load a detector, by default the shipped one. Raises WeightsError when its file is missing."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(
            f"the checker's weights {path} are missing; train them: "
            "python -m langevin.picturebook.train --stage checker"
        )
    model = Detector()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval()


def _objects(cells: np.ndarray) -> tuple[Found, ...]:
    """Gather the cells of one picture (8, 8, 30; probabilities where logits were) into things, surest first."""
    rows, columns = np.nonzero(cells[..., 0] > 0.5)
    votes = sorted(((cells[r, c], r, c) for r, c in zip(rows, columns, strict=True)), key=lambda vote: -vote[0][0])
    groups: list[list[tuple[np.ndarray, float, float]]] = []
    for cell, row, column in votes:
        x, y = (column + 0.5 + cell[1]) / GRID, (row + 0.5 + cell[2]) / GRID
        near = next((g for g in groups if max(abs(g[0][1] - x), abs(g[0][2] - y)) < 0.2), None)
        if near is None:
            groups.append([(cell, x, y)])
        else:
            near.append((cell, x, y))
    things = []
    for group in groups:
        weights = np.array([cell[0] for cell, _, _ in group])
        mean = np.average([cell for cell, _, _ in group], axis=0, weights=weights)
        x, y = np.average([(x, y) for _, x, y in group], axis=0, weights=weights)
        kinds, colours = mean[3 : 3 + len(LABELS)], mean[3 + len(LABELS) :]
        sure = float(weights.max() * kinds.max() * colours.max())
        things.append(Found(LABELS[int(kinds.argmax())], COLOURS[int(colours.argmax())], float(x), float(y), sure))
    return tuple(things)


@torch.no_grad()
def look(images: Any, *, detector: Detector | None = None) -> list[Sight]:
    """Tell what each picture shows; `images` as in `to_pictures`, `detector` defaults to the shipped one."""
    model = detector or load_detector()
    sights = []
    for part in to_pictures(images).split(128):
        cells, backgrounds, styles = model(part)
        presence, offset, kind, colour = cells.float().split([1, 2, len(LABELS), len(COLOURS)], dim=-1)
        read = torch.cat([presence.sigmoid(), offset, kind.softmax(-1), colour.softmax(-1)], dim=-1).numpy()
        names = zip(backgrounds.argmax(1).tolist(), styles.argmax(1).tolist(), strict=True)
        sights += [Sight(_objects(c), BACKGROUNDS[b], STYLES[s]) for c, (b, s) in zip(read, names, strict=True)]
    return sights


# Judging


def _in_relation(relation: str | None, first: Sequence[Found], second: Sequence[Found]) -> bool:
    """Tell whether the first things lie left of or above the second ones, more so than across."""
    across = float(np.mean([f.x for f in second]) - np.mean([f.x for f in first]))
    down = float(np.mean([f.y for f in second]) - np.mean([f.y for f in first]))
    along, aside = (across, down) if relation == "left of" else (down, across)
    return along > 0.08 and along >= abs(aside)


def _match(wishes: Sequence[tuple[int, Wish]], found: Sequence[Found], relation: str | None) -> tuple[bool, bool, bool]:
    """Judge one assignment of found things to wishes, given as (number of the wish, wish)."""
    kinds = all(wish.kind == thing.kind for (_, wish), thing in zip(wishes, found, strict=True))
    colours = kinds and all(wish.colour in (None, thing.colour) for (_, wish), thing in zip(wishes, found, strict=True))
    sides = [[thing for (n, _), thing in zip(wishes, found, strict=True) if n == number] for number in (0, 1)]
    return kinds, colours, kinds and (relation is None or _in_relation(relation, *sides))


def judge(sight: Sight, request: Request) -> Verdict:
    """Compare what a picture shows with what was asked, taking the assignment of things to wishes that fits best."""
    wishes = [(number, wish) for number, wish in enumerate(request.things) for _ in range(wish.count)]
    best = (False, False, False)
    if len(wishes) == len(sight.found):
        orders = itertools.permutations(sight.found)
        best = max((_match(wishes, order, request.relation) for order in orders), key=lambda m: (m[0], sum(m)))
    background = request.background in (None, sight.background)
    style = request.style in (None, sight.style)
    return Verdict(*best, background, style, all(best), sight.found, sight.background, sight.style)


def check(images: Any, prompts: Sequence[str | Request], *, detector: Detector | None = None) -> list[Verdict]:
    """Judge each picture by its prompt (a caption or a parsed request); `images` as in `to_pictures`.

    Raises InputError when their numbers differ or a prompt is outside the picturebook's language.
    """
    sights = look(images, detector=detector)
    if len(sights) != len(prompts):
        raise InputError(f"{len(sights)} pictures came with {len(prompts)} prompts; give one prompt per picture")
    requests = [parse(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return [judge(sight, request) for sight, request in zip(sights, requests, strict=True)]
