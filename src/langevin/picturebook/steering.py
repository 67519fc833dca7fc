"""How well the ControlNet steers: the edges of pictures against those that they were made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.images import to_images
from .checker import Verdict, check
from .data import signed
from .edges import Task, agreement, edges, outline_picture
from .scores import generate, wilson


@dataclass(frozen=True)
class Steering:
    """How well the edges of `count` pictures agree with wanted ones, in percent with a 95 % interval.

    `things` and `right` are the shares of pictures that show the caption's things, and all it says (see `Verdict`), in
    percent with their intervals; None where no pictures are judged.
    """

    name: str
    count: int
    percent: float
    low: float
    high: float
    things: tuple[float, float, float] | None = None
    right: tuple[float, float, float] | None = None


def steering(name: str, agreements: np.ndarray, verdicts: Sequence[Verdict] = ()) -> Steering:
    """Average the agreements of pictures; the interval is the mean's, 1.96 standard errors to either side."""

    def share(flags: list[bool]) -> tuple[float, float, float] | None:
        return (100 * sum(flags) / len(flags), *wilson(sum(flags), len(flags))) if flags else None

    mean, error = float(agreements.mean()), float(agreements.std(ddof=1)) / math.sqrt(len(agreements))
    low, high = (100 * min(max(mean + 1.96 * side * error, 0.0), 1.0) for side in (-1, 1))
    things, right = share([v.kinds_right for v in verdicts]), share([v.all_right for v in verdicts])
    return Steering(name, len(agreements), 100 * mean, low, high, things, right)


def outlines_of(pictures: Sequence[Any]) -> np.ndarray:
    """Return the edges of PIL pictures, bool of shape (n, height, width)."""
    return edges(np.stack([np.asarray(picture) for picture in pictures]))


def evaluate_control(pipe: Any, given: Sequence[Task], **options: Any) -> tuple[list[Steering], dict[str, list[Any]]]:
    """Return how well pictures follow edges, and the pictures, made from the same noise in four ways.

    The four ways are the caption with the edges, a caption with other colours with the edges, the edges alone (the
    empty prompt), and the caption alone. Chance is what the first pictures reach when they are compared with the edges
    of all other scenes. Last come the scenes themselves, encoded and decoded: no picture of this model can do better.

    Args:
        pipe: a ControlNet pipeline.
        options: arguments of `generate`.
    """
    told, wanted = [task.caption for task in given], np.stack([task.outline for task in given])
    other, nothing, shown = [task.recoloured for task in given], [""] * len(given), [outline_picture(o) for o in wanted]
    ways = {
        "caption and edges": (told, 1.0),
        "other colours": (other, 1.0),
        "edges alone": (nothing, 1.0),
        "caption alone": (told, 0.0),
    }
    made = {
        name: generate(pipe, texts, conditions=shown, controlnet_conditioning_scale=scale, **options)
        for name, (texts, scale) in ways.items()
    }
    made["encoded and decoded"] = reconstruct(pipe.vae, np.stack([task.picture for task in given]))
    found = {name: outlines_of(pictures) for name, pictures in made.items()}
    scores = []
    for name, pictures in made.items():
        texts = other if name == "other colours" else told
        scores.append(steering(name, agreement(found[name], wanted), check(pictures, texts)))
    turns = range(1, len(given))
    turned = [agreement(found["caption and edges"], np.roll(wanted, turn, axis=0)) for turn in turns]
    return [*scores, steering("chance", np.mean(turned, axis=0))], made


@torch.no_grad()
def reconstruct(vae: Any, pictures: np.ndarray) -> list[Any]:
    """Return pictures, uint8 (n, height, width, 3), as PIL pictures that were encoded and decoded."""
    return to_images(vae.decode(vae.encode(signed(pictures)).latent_dist.mode()).sample)
