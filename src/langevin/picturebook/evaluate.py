"""Measures the picturebook: `python -m langevin.picturebook.evaluate`.

It generates from fixed prompts and seeds and lets the checker judge. Three scores: one thing with its colour, two
things with colours and relation, and combinations that training never showed. With --control it measures instead how
well pictures follow the edges of scenes that training never drew.
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

import numpy as np
import torch

from ..core.files import atomic_write
from ..core.images import grid, to_images
from . import GUIDANCE_SCALE, STEPS
from .checker import Verdict, check, prompts
from .edges import Task, agreement, edges, outline_picture, tasks

MODEL = Path(__file__).with_name("model")
CONTROL = Path(__file__).with_name("control")
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
    images = torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1
    return to_images(vae.decode(vae.encode(images).latent_dist.mode()).sample)


def details(rows: Sequence[tuple[str, Any, Verdict]]) -> str:
    """Return the shares of the single judgements as text."""
    names = ("kinds_right", "colours_right", "relation_right", "background_right", "style_right")
    shares = {name: 100 * sum(getattr(verdict, name) for _, _, verdict in rows) / len(rows) for name in names}
    return ", ".join(f"{name.removesuffix('_right')} {share:.0f}" for name, share in shares.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores of a pipeline folder, and write the pictures where asked."""
    parser = argparse.ArgumentParser(prog="python -m langevin.picturebook.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="pipeline folder (default: the one in the package)")
    parser.add_argument(
        "--control",
        type=Path,
        nargs="?",
        const=CONTROL,
        help="measure a ControlNet folder instead (without a name: the one in the package)",
    )
    parser.add_argument("--prompts", type=int, help="prompts of each kind (default: 200, with --control 64)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--batch", type=int, default=25, help="pictures at a time (default: 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="folder for scores.json and sheets of pictures")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    start = time.monotonic()
    (control_scores if chosen.control else prompt_scores)(chosen)
    print(f"{time.monotonic() - start:.0f} s")


def options_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generate` that the command line names."""
    return {name: getattr(chosen, name) for name in ("steps", "guidance_scale", "batch", "seed")}


def prompt_scores(chosen: argparse.Namespace) -> None:
    """Print how many prompts of each kind are fulfilled."""
    from ..pipelines.stable_diffusion import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(chosen.model)
    pipe.set_progress_bar_config(disable=True)
    scores, made = evaluate(pipe, count=chosen.prompts or 200, **options_of(chosen))
    for one in scores:
        interval = f"95 % interval {one.low:.1f} to {one.high:.1f}; goal {GOALS[one.kind]}"
        print(f"{one.kind:>8}: {one.percent:5.1f} % of {one.count} ({interval}); {details(made[one.kind])}")
    if chosen.output:
        sheets = {kind: [picture for _, picture, _ in rows[:48]] for kind, rows in made.items()}
        keep(chosen.output, scores, sheets, rows=4, columns=12)


def control_scores(chosen: argparse.Namespace) -> None:
    """Print how well pictures follow edges."""
    from ..models.controlnets.controlnet import ControlNetModel
    from ..pipelines.controlnet import StableDiffusionControlNetPipeline

    control = ControlNetModel.from_pretrained(chosen.control)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(chosen.model, controlnet=control)
    pipe.set_progress_bar_config(disable=True)
    given = tasks(chosen.prompts or 64, seed=chosen.seed)
    scores, made = evaluate_control(pipe, given, **options_of(chosen))
    for one in scores:
        print(f"{one.name:>20}: agreement {one.percent:5.1f} % ({one.low:.1f} to {one.high:.1f})", end="")
        for name in ("things", "right"):
            if (share := getattr(one, name)) is not None:
                print(f"; {name} {share[0]:5.1f} % ({share[1]:.1f} to {share[2]:.1f})", end="")
        print()
    if chosen.output:
        ways = [[outline_picture(task.outline) for task in given], *made.values()]
        sheet = [picture for way in ways for picture in way[:8]]
        keep(chosen.output, scores, {"control": sheet}, rows=len(ways), columns=8)


def keep(folder: Path, scores: Sequence[Any], sheets: dict[str, list[Any]], *, rows: int, columns: int) -> None:
    """Write scores.json and sheets of pictures, each twice as large, under their names."""
    atomic_write(folder / "scores.json", json.dumps([asdict(one) for one in scores], indent=2))
    for name, pictures in sheets.items():
        sheet = grid(pictures, rows=rows, cols=columns)
        sheet.resize((128 * columns, 128 * rows), 0).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
