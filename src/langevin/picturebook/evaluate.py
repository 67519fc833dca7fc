"""Measures the picturebook: `python -m langevin.picturebook.evaluate`.

It generates from fixed prompts and seeds and lets the checker judge. Three scores: one thing with its colour, two
things with colours and relation, and combinations that training never showed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.files import atomic_write
from ..core.images import grid
from . import GUIDANCE_SCALE, STEPS
from .checker import Verdict, check, prompts

MODEL = Path(__file__).with_name("model")
KINDS = ("single", "pair", "held-out")
GOALS = {"single": 92, "pair": 75, "held-out": 70}
"""What the model should reach, in percent."""


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
    pipe: Any, texts: Sequence[str], *, steps: int, guidance_scale: float, batch: int, seed: int = 0
) -> list[Any]:
    """Return one picture per prompt; picture k has the seed `seed` + k whatever the batch size."""
    pictures = []
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        seeds = [torch.Generator().manual_seed(seed + start + k) for k in range(len(part))]
        pictures += pipe(part, num_inference_steps=steps, guidance_scale=guidance_scale, generator=seeds).images
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores of a pipeline folder, and write the pictures where asked."""
    parser = argparse.ArgumentParser(prog="python -m langevin.picturebook.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="pipeline folder (default: the one in the package)")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of each kind (default: 200)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--batch", type=int, default=25, help="pictures at a time (default: 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="folder for scores.json and one grid of pictures per kind")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    from ..pipelines.stable_diffusion import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(chosen.model)
    pipe.set_progress_bar_config(disable=True)
    start = time.monotonic()
    scores, made = evaluate(
        pipe,
        count=chosen.prompts,
        steps=chosen.steps,
        guidance_scale=chosen.guidance_scale,
        batch=chosen.batch,
        seed=chosen.seed,
    )
    for one in scores:
        interval = f"95 % interval {one.low:.1f} to {one.high:.1f}; goal {GOALS[one.kind]}"
        print(f"{one.kind:>8}: {one.percent:5.1f} % of {one.count} ({interval}); {details(made[one.kind])}")
    print(f"{3 * chosen.prompts} pictures in {time.monotonic() - start:.0f} s")
    if chosen.output:
        atomic_write(chosen.output / "scores.json", json.dumps([asdict(one) for one in scores], indent=2))
        for kind, rows in made.items():
            sheet = grid([picture for _, picture, _ in rows[:48]], rows=4, cols=12)
            sheet.resize((1536, 512), 0).save(chosen.output / f"{kind}.png")


if __name__ == "__main__":
    main()
