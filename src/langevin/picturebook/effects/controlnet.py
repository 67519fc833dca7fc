"""A ControlNet on the picturebook, from the beginning: what scenes apart cost as it learns, and how well it steers.

Beside it stands the shipped one, which saw far more samples: the same scenes, drawn from the same noise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import GUIDANCE_SCALE, STEPS, control_folder
from ..captions import describe
from ..checker import check
from ..edges import THRESHOLDS, agreement, edges, outline_picture, tasks
from ..scores import generate
from ..steering import Steering, outlines_of, steering
from ..world import render, sample_scene
from .common import BASE, Effect, Share, shipped, trained, write_pictures

SCENES, APART = 8000, 40
"""Scenes to learn from, and scenes whose loss is measured."""
CASES = 64
"""Scenes whose edges pictures are drawn along."""
LOOKS = 8
"""How often the loss is measured."""
FLAGS: dict[str, Any] = {
    **BASE,
    "train_batch_size": 32,
    "mixed_precision": "bf16",
    "max_train_steps": 2000,
    "learning_rate": 7e-4,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 20,
    "proportion_empty_prompts": 0.5,
    "checkpointing_steps": 250,
}
"""The settings that the published figures were made with."""


def draw(folder: Path, count: int, seed: int) -> Path:
    """Write scenes, their edges with the pairs of thresholds in turns, and two captions of each; return the folder."""
    rng = np.random.default_rng([seed, 9])
    scenes = [sample_scene(rng) for _ in range(count)]
    pictures = np.stack([render(scene) for scene in scenes])
    (folder / "edges").mkdir(parents=True, exist_ok=True)
    rows = []
    for k, scene in enumerate(scenes):
        outline = edges(pictures[k : k + 1], THRESHOLDS[k % len(THRESHOLDS)])[0]
        outline_picture(outline).save(folder / "edges" / f"{k:05d}.png")
        captions = [describe(scene, rng) for _ in range(2)]
        rows.append({"conditioning_image_file_name": f"edges/{k:05d}.png", "text": captions})
    return write_pictures(folder, pictures, rows)


def looks(folder: Path) -> list[dict[str, Any]]:
    """Return what a run says of its held-out examples, one look after the other: its step and the loss."""
    lines = (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: point[name] for name in ("step", "loss")} for point in map(json.loads, lines)]


def follow(net: Any, count: int, name: str, scale: float) -> tuple[Steering, list[Any]]:
    """Return how well pictures of captions and edges follow a ControlNet at a scale, and the pictures."""
    from ...pipelines.controlnet import StableDiffusionControlNetPipeline

    pipe, given = StableDiffusionControlNetPipeline.from_pipe(shipped(), controlnet=net), tasks(count)
    conditions, texts = [outline_picture(task.outline) for task in given], [task.caption for task in given]
    options: dict[str, Any] = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "batch": 16}
    made = generate(pipe, texts, conditions=conditions, controlnet_conditioning_scale=scale, **options)
    agreements = agreement(outlines_of(made), np.stack([task.outline for task in given]))
    return steering(name, agreements, check(made, texts)), made


def measure(folder: Path, steps: int | None) -> Effect:
    """Train from the beginning, and compare the result with the shipped ControlNet and with no control."""
    from ...models.controlnets.controlnet import ControlNetModel

    flags, scenes, apart, count = FLAGS, SCENES, APART, CASES
    if steps is not None:
        flags = {**FLAGS, **BASE, "max_train_steps": steps, "lr_warmup_steps": 0}
        scenes, apart, count = 16, 10, 4
    every = max(1, flags["max_train_steps"] // LOOKS)
    flags = {**flags, "heldout_steps": every, "heldout_draws": apart}
    data = {
        "train_data_dir": str(draw(folder / "data", scenes, 1)),
        "heldout_data_dir": str(draw(folder / "apart", apart, 2)),
    }
    result, minutes = trained("controlnet", data, flags, folder / "model")
    still = {**flags, "max_train_steps": 1, "learning_rate": 0.0, "lr_warmup_steps": 0}
    given = {**data, "controlnet_model_name_or_path": str(control_folder())}
    known, _ = trained("controlnet", given, {**still, "max_train_samples": flags["train_batch_size"]}, folder / "known")
    mine, shipped_one = (ControlNetModel.from_pretrained(path) for path in (result, control_folder()))
    ways = {"no control": (mine, 0.0), "trained": (mine, 1.0), "the shipped one": (shipped_one, 1.0)}
    found, rows = [], [outline_picture(task.outline) for task in tasks(10)]
    for name, (net, scale) in ways.items():
        told, made = follow(net, count, name, scale)
        found.append(told)
        rows += made[:10]
    shares = [Share(f"{one.name}: things right", count, *one.things) for one in found if one.things]
    figures = {
        "minutes": minutes,
        "agreement with the edges": {one.name: [one.percent, one.low, one.high] for one in found},
        "loss of scenes apart": looks(result),
        "loss of scenes apart, the shipped one": looks(known)[0]["loss"],
    }
    return Effect("controlnet", shares, figures, flags, {"controlnet": rows})
