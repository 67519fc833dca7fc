"""Text to image from the beginning: what a fresh UNet of the shipped size learns, beside the shipped one.

Autoencoder and text encoder are the shipped ones. What scenes cost that neither was trained on is measured as the
training goes on, and the prompts of the picturebook's scores at its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..captions import describe
from ..denoiser import build
from ..scores import evaluate
from ..world import render, sample_scene
from .common import BASE, Effect, Share, shipped, trained, write_pictures
from .controlnet import looks

SCENES, APART = 300, 40
"""Scenes to learn from, and scenes whose loss is measured."""
PROMPTS = 10
"""Prompts of each kind of score."""
LOOKS = 5
"""How often the loss is measured."""
FLAGS: dict[str, Any] = {
    **BASE,
    "max_train_steps": 100,
    "learning_rate": 7e-4,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 10,
    "caption_dropout_prob": 0.1,
    "checkpointing_steps": 1000,
    "use_ema": True,
}
"""The settings that the published figures were made with."""


def draw(folder: Path, count: int, seed: int) -> Path:
    """Write scenes and two captions of each, and return the folder."""
    rng = np.random.default_rng([seed, 12])
    scenes = [sample_scene(rng) for _ in range(count)]
    rows = [{"text": [describe(scene, rng) for _ in range(2)]} for scene in scenes]
    return write_pictures(folder, [render(scene) for scene in scenes], rows)


def fresh(folder: Path) -> Path:
    """Write the shipped pipeline with an untrained UNet, and return the folder."""
    from ...training.streams import seeded

    pipe = shipped()
    with seeded(0):
        unet = build()
    pipe.register_modules(unet=unet)
    pipe.save_pretrained(folder)
    return folder


def measure(folder: Path, steps: int | None) -> Effect:
    """Train a fresh UNet, and measure its scores, and compare its loss with that of the shipped one."""
    from ...pipelines.stable_diffusion import StableDiffusionPipeline

    flags, scenes, apart, count = FLAGS, SCENES, APART, PROMPTS
    if steps is not None:
        flags, scenes, apart, count = {**FLAGS, "max_train_steps": steps, "lr_warmup_steps": 0}, 16, 10, 2
    every = max(1, flags["max_train_steps"] // LOOKS)
    flags = {**flags, "heldout_steps": every, "heldout_draws": apart}
    data = {
        "train_data_dir": str(draw(folder / "data", scenes, 1)),
        "heldout_data_dir": str(draw(folder / "apart", apart, 2)),
    }
    begin = {"pretrained_model_name_or_path": str(fresh(folder / "begin"))}
    result, minutes = trained("text_to_image", {**data, **begin}, flags, folder / "model")
    still = {**flags, "max_train_steps": 1, "learning_rate": 0.0, "max_train_samples": flags["train_batch_size"]}
    known, _ = trained("text_to_image", data, {**still, "lr_warmup_steps": 0}, folder / "known")
    shares, rows = [], []
    scores, made = evaluate(StableDiffusionPipeline.from_pretrained(result), count=count, batch=20)
    for score in scores:
        shares.append(Share(score.kind, score.count, score.percent, score.low, score.high))
        rows += [picture for _, picture, _ in made[score.kind][:10]]
    figures = {
        "minutes": minutes,
        "loss of scenes apart": looks(result),
        "loss of scenes apart, the shipped one": looks(known)[0]["loss"],
    }
    return Effect("text_to_image", shares, figures, flags, {"text-to-image": rows})
