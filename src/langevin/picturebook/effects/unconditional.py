"""Training on pictures alone: how far drawn pictures are from true ones after more and more steps.

The distance is the Fréchet distance of the checker's features, between pictures of every checkpoint, drawn from the
same noise, and scenes that were not trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.images import from_array
from ..features import CheckerFeatures
from ..world import render, sample_scene
from .common import Effect, trained, write_pictures

SIDE = 32
"""Height and width of the pictures."""
SCENES = 1000
"""Pictures to learn from, and true ones to compare with."""
DRAWN, STEPS = 128, 12
"""Pictures of every checkpoint, and the steps of each."""
LOOKS = 5
"""Checkpoints."""
CONFIG: dict[str, Any] = {
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}
"""The network."""
FLAGS: dict[str, Any] = {
    "resolution": SIDE,
    "center_crop": True,
    "train_batch_size": 16,
    "max_train_steps": 250,
    "learning_rate": 2e-3,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 10,
    "prediction_type": "v_prediction",
    "use_ema": True,
    "ddpm_num_inference_steps": 12,
    "save_images_epochs": 1000,
    "save_model_epochs": 1000,
    "mixed_precision": "no",
    "logger": "none",
    "seed": 0,
}
"""The settings that the published figures were made with."""


def scenes(count: int, seed: int) -> list[np.ndarray]:
    """Return pictures of scenes, uint8 (SIDE, SIDE, 3)."""
    rng = np.random.default_rng([seed, 10])
    pictures = [Image.fromarray(render(sample_scene(rng))) for _ in range(count)]
    return [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)) for picture in pictures]


def averaged(checkpoint: Path) -> Any:
    """Return the network of a checkpoint with the average of its weights."""
    from safetensors.torch import load_file

    from ...models.unets.unet_2d import UNet2DModel

    unet = UNet2DModel.from_pretrained(checkpoint / "unet")
    values = load_file(checkpoint / "average.safetensors")
    for k, parameter in enumerate(unet.parameters()):
        parameter.data.copy_(values[f"values.{k}"])
    return unet


def pictures_of(unet: Any, scheduler: Any, count: int) -> list[Any]:
    """Return pictures that a network draws; the first ones are the same for every count."""
    from ...pipelines.unconditional import DDIMPipeline

    pipe, found = DDIMPipeline(unet, scheduler), []
    for start in range(0, count, 50):
        size = min(50, count - start)
        found += pipe(batch_size=size, num_inference_steps=STEPS, seed=list(range(start, start + size))).images
    return found


def measure(folder: Path, steps: int | None) -> Effect:
    """Train on pictures alone, and measure the distance of every checkpoint."""
    from ...evaluation.distances import frechet
    from ...evaluation.states import Moments
    from ...pipelines.unconditional import DDPMPipeline
    from ...schedulers.preserving import DDIMScheduler

    flags, count, drawn = FLAGS, SCENES, DRAWN
    if steps is not None:
        flags, count, drawn = {**FLAGS, "max_train_steps": steps, "lr_warmup_steps": 0}, 64, 16
    flags = {**flags, "checkpointing_steps": max(1, flags["max_train_steps"] // LOOKS)}
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    known = write_pictures(folder / "data", scenes(count, 1))
    data = {"train_data_dir": str(known), "model_config_name_or_path": str(config)}
    result, minutes = trained("unconditional", data, flags, folder / "model")
    scheduler = DDIMScheduler.from_config(DDPMPipeline.from_pretrained(result).scheduler.config, clip_sample=True)
    features = CheckerFeatures()

    def moments(pictures: list[Any]) -> Any:
        return Moments.of(features(pictures))

    apart = from_array(np.stack(scenes(count + drawn, 2)) / 255)
    true = moments(apart[drawn:])
    distances, rows = {"true pictures": frechet(moments(apart[:drawn]), true)}, []
    for checkpoint in sorted(result.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        made = pictures_of(averaged(checkpoint), scheduler, drawn)
        distances[checkpoint.name] = frechet(moments(made), true)
        rows += made[:10]
    figures = {
        "minutes": minutes,
        "parameters": sum(p.numel() for p in averaged(checkpoint).parameters()),
        "Fréchet distance": {name: round(value, 2) for name, value in distances.items()},
    }
    return Effect("unconditional", [], figures, flags, {"unconditional": [*rows, *apart[:10]]})
