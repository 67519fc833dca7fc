"""Scores of the picturebook: what share of fixed prompts its pictures fulfil, and how often the checker is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..core.errors import check_choice
from . import GUIDANCE_SCALE, STEPS, world
from .captions import Request, describe, request_of
from .checker import Verdict, check, judge, look
from .detector import Detector
from .world import COLOURS, Scene, render, sample_scene

GOALS = {"single": 92, "pair": 75, "held-out": 70}
"""What the model should reach, in percent: of single things, of pairs in a relation, of what was never shown."""

KINDS = tuple(GOALS)


def scenes(kind: str, rng: np.random.Generator) -> Iterator[Scene]:
    """Draw scenes of a kind, one of `KINDS`, without end."""
    while True:
        scene = sample_scene(rng, held_out=kind == "held-out")
        alone = len(scene.things) == 1
        if (
            kind == "held-out"
            or (alone and kind == "single" and scene.things[0].count == 1)
            or (not alone and kind == "pair")
        ):
            yield scene


def prompts(n: int, kind: str, seed: int = 0) -> list[str]:
    """Return the fixed prompts of a kind, one of `KINDS`."""
    check_choice("kind", kind, KINDS)
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    return [describe(scene, rng) for scene in itertools.islice(scenes(kind, rng), n)]


@dataclass(frozen=True)
class Score:
    """How many of `count` prompts were fulfilled, as a percentage with its 95 % interval."""

    kind: str
    count: int
    percent: float
    low: float
    high: float


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, in percent (Wilson 1927)."""
    if not count:
        return 0.0, 100.0
    z, p = 1.96, right / count
    centre, spread = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 100 / (1 + z * z / count)
    return max(0.0, (centre - spread) * scale), min(100.0, (centre + spread) * scale)


def generate(
    pipe: Any,
    texts: Sequence[str],
    *,
    steps: int,
    guidance_scale: float,
    batch: int,
    seed: int = 0,
    conditions: Sequence[Any] | None = None,
    **options: Any,
) -> list[Any]:
    """Return one picture per prompt; picture k has the seed `seed` + k whatever the batch size.

    Args:
        conditions: one control picture per prompt.
        options: further arguments of the pipeline.
    """
    pictures = []
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        seeds = [torch.Generator().manual_seed(seed + start + k) for k in range(len(part))]
        shown = {"image": list(conditions[start : start + batch])} if conditions else {}
        made = pipe(part, num_inference_steps=steps, guidance_scale=guidance_scale, generator=seeds, **shown, **options)
        pictures += made.images
    return pictures


def score(kind: str, verdicts: Sequence[Verdict]) -> Score:
    """Count the prompts whose things, colours and relation are all right."""
    right = sum(verdict.all_right for verdict in verdicts)
    return Score(kind, len(verdicts), 100 * right / len(verdicts), *wilson(right, len(verdicts)))


def evaluate(
    pipe: Any,
    *,
    count: int = 200,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    batch: int = 25,
    seed: int = 0,
) -> tuple[list[Score], dict[str, list[tuple[str, Any, Verdict]]]]:
    """Return the scores on `count` prompts of each kind, and the prompts with their pictures and verdicts."""
    scores, made = [], {}
    for kind in KINDS:
        texts = prompts(count, kind, seed)
        pictures = generate(pipe, texts, steps=steps, guidance_scale=guidance_scale, batch=batch, seed=seed)
        verdicts = check(pictures, texts)
        scores.append(score(kind, verdicts))
        made[kind] = list(zip(texts, pictures, verdicts, strict=True))
    return scores, made


def details(rows: Sequence[tuple[str, Any, Verdict]]) -> str:
    """Return the shares of the single judgements as text."""
    names = ("kinds_right", "colours_right", "relation_right", "background_right", "style_right")
    shares = {name: 100 * sum(getattr(verdict, name) for _, _, verdict in rows) / len(rows) for name in names}
    return ", ".join(f"{name.removesuffix('_right')} {share:.0f}" for name, share in shares.items())


# The checker itself


def accuracy(detector: Detector | None = None, *, n: int = 500, seed: int = 10_000) -> dict[str, float]:
    """Return the share of fresh renders judged right, and of false prompts refused, for each kind of `prompts`."""
    scores: dict[str, float] = {}
    for kind in KINDS:
        rng = np.random.default_rng([seed, len(scores)])
        drawn = list(itertools.islice(scenes(kind, rng), n))
        sights, requests = look([render(scene) for scene in drawn], detector=detector), [request_of(s) for s in drawn]
        verdicts = [judge(sight, request) for sight, request in zip(sights, requests, strict=True)]
        scores[kind] = float(np.mean([v.all_right for v in verdicts]))
        scores[f"{kind} background"] = float(np.mean([v.background_right for v in verdicts]))
        wrong = [judge(sight, contradict(request, rng)) for sight, request in zip(sights, requests, strict=True)]
        scores[f"{kind} refused"] = float(np.mean([not v.all_right for v in wrong]))
    return scores


def contradict(request: Request, rng: np.random.Generator) -> Request:
    """Return the request with one thing untrue: another colour, another kind, or the things of a relation exchanged."""
    if len(request.things) == 2 and rng.random() < 0.5:
        return replace(request, things=request.things[::-1])
    first, *others = request.things
    kinds = [kind for kind in world.KINDS if kind not in {thing.kind for thing in request.things}]
    colours = [colour for colour in COLOURS if colour != first.colour]
    if rng.random() < 0.5:
        changed = replace(first, colour=colours[int(rng.integers(len(colours)))])
    else:
        changed = replace(first, kind=kinds[int(rng.integers(len(kinds)))])
    return replace(request, things=(changed, *others))
