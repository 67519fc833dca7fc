"""A ControlNet on the picturebook, from the beginning: how well pictures follow edges after more and more steps.

Beside it stands the shipped one, which saw far more samples. Both say what scenes cost that neither was trained on, and
draw the same scenes from the same noise.
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
from .common import Effect, Share, shipped, trained, write_pictures

SCENES, APART = 1000, 100
"""Scenes to learn from, and scenes whose loss is measured."""
CASES = 32
"""Scenes whose edges pictures are drawn along."""
LOOKS = 4
"""How often the loss is measured and a checkpoint is kept."""
FLAGS: dict[str, Any] = {
    "resolution": 64,
    "center_crop": True,
    "cache_latents": True,
    "train_batch_size": 16,
    "max_train_steps": 200,
    "learning_rate": 5e-4,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 10,
    "proportion_empty_prompts": 0.5,
    "heldout_draws": APART,
    "mixed_precision": "no",
    "report_to": "none",
    "seed": 0,
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


def follow(net: Any, count: int, name: str) -> tuple[Steering, list[Any]]:
    """Return how well pictures of captions and edges follow a ControlNet, and the pictures."""
    from ...pipelines.controlnet import StableDiffusionControlNetPipeline

    pipe, given = StableDiffusionControlNetPipeline.from_pipe(shipped(), controlnet=net), tasks(count)
    conditions, texts = [outline_picture(task.outline) for task in given], [task.caption for task in given]
    options: dict[str, Any] = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "batch": 16}
    made = generate(pipe, texts, conditions=conditions, **options)
    agreements = agreement(outlines_of(made), np.stack([task.outline for task in given]))
    return steering(name, agreements, check(made, texts)), made


def measure(folder: Path, steps: int | None) -> Effect:
    """Train from the beginning, and compare every checkpoint with the shipped ControlNet and with no control."""
    from ...models.controlnets.controlnet import ControlNetModel

    flags, scenes, apart, count = FLAGS, SCENES, APART, CASES
    if steps is not None:
        flags, scenes, apart, count = {**FLAGS, "max_train_steps": steps, "lr_warmup_steps": 0}, 16, 10, 4
    every = max(1, flags["max_train_steps"] // LOOKS)
    flags = {**flags, "checkpointing_steps": every, "heldout_steps": every, "heldout_draws": apart}
    data = {
        "train_data_dir": str(draw(folder / "data", scenes, 1)),
        "heldout_data_dir": str(draw(folder / "apart", apart, 2)),
    }
    result, minutes = trained("controlnet", data, flags, folder / "model")
    still = {**flags, "max_train_steps": 1, "learning_rate": 0.0, "lr_warmup_steps": 0, "checkpointing_steps": 2}
    given = {**data, "controlnet_model_name_or_path": str(control_folder())}
    known, _ = trained("controlnet", given, {**still, "max_train_samples": flags["train_batch_size"]}, folder / "known")
    nets = {
        f"{each.name.removeprefix('checkpoint-')} steps": (each / "controlnet")
        for each in sorted(result.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    }
    found, rows = [], [outline_picture(task.outline) for task in tasks(10)]
    for name, path in {**nets, "the shipped one": control_folder()}.items():
        told, made = follow(ControlNetModel.from_pretrained(path), count, name)
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
