"""Measures the picturebook: `python -m langevin.picturebook.evaluate`.

It generates from fixed prompts and seeds and lets the checker judge. Three scores: one thing with its colour, two
things with colours and relation, and combinations that training never showed. With --control it measures instead how
well pictures follow the edges of scenes that training never drew, with --checker how often the checker is right.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..core.files import atomic_write
from ..core.images import grid
from ..models.controlnets.controlnet import ControlNetModel
from ..pipelines.controlnet import StableDiffusionControlNetPipeline
from ..pipelines.stable_diffusion import StableDiffusionPipeline
from . import GUIDANCE_SCALE, STEPS, control_folder, model_folder
from .checker import WEIGHTS, load_detector
from .edges import outline_picture, tasks
from .scores import GOALS, accuracy, details, evaluate
from .steering import evaluate_control


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m langevin.picturebook.evaluate", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="pipeline folder (default: the one in the package)")
    instead = parser.add_mutually_exclusive_group()
    for name, what in (("--control", "a ControlNet folder"), ("--checker", "a file of the checker's weights")):
        help = f"measure {what} instead (without a name: the one in the package)"
        instead.add_argument(name, nargs="?", const="", help=help)
    add("--prompts", type=int, help="prompts of each kind (default: 200, with --control 64, with --checker 1000)")
    add("--steps", type=int, default=STEPS)
    add("--guidance-scale", type=float, default=GUIDANCE_SCALE)
    add("--batch", type=int, default=25, help="pictures at a time (default: 25)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=os.cpu_count())
    add("--output", type=Path, help="folder for scores.json and sheets of pictures")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores that the command line asks for, and write the pictures where asked."""
    chosen = parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    start = time.monotonic()
    if chosen.checker is not None:
        checker_scores(chosen)
    elif chosen.control is not None:
        control_scores(chosen)
    else:
        prompt_scores(chosen)
    print(f"{time.monotonic() - start:.0f} s")


def options_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generate` that the command line names."""
    return {name: getattr(chosen, name) for name in ("steps", "guidance_scale", "batch", "seed")}


def prompt_scores(chosen: argparse.Namespace) -> None:
    """Print how many prompts of each kind are fulfilled."""
    pipe = StableDiffusionPipeline.from_pretrained(chosen.model or model_folder())
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
    net = ControlNetModel.from_pretrained(chosen.control or control_folder())
    pipe = StableDiffusionControlNetPipeline.from_pretrained(chosen.model or model_folder(), controlnet=net)
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


def checker_scores(chosen: argparse.Namespace) -> None:
    """Print how often the checker is right about pictures that it has not seen."""
    detector = load_detector(Path(chosen.checker or WEIGHTS))
    for name, share in accuracy(detector, n=chosen.prompts or 1000).items():
        print(f"{name:>20}: {100 * share:6.2f} %")


def keep(folder: Path, scores: Sequence[Any], sheets: dict[str, list[Any]], *, rows: int, columns: int) -> None:
    """Write scores.json and sheets of pictures, each twice as large, under their names."""
    atomic_write(folder / "scores.json", json.dumps([asdict(one) for one in scores], indent=2))
    for name, pictures in sheets.items():
        sheet = grid(pictures, rows=rows, cols=columns)
        sheet.resize((128 * columns, 128 * rows), 0).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
