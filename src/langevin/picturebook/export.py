"""Writes the trained picturebook as an ordinary StableDiffusionPipeline folder in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..core.files import atomic_file, atomic_folder
from ..core.weights_io import write_safetensors
from ..models.autoencoders.autoencoder_kl import AutoencoderKL
from ..pipelines.stable_diffusion import StableDiffusionPipeline
from ..schedulers.log_snr import DPMSolverMultistepScheduler
from . import denoiser, tokenizer
from .clip import CHANNEL_MEAN, CHANNEL_SPREAD
from .train import Training


def text_encoder(tower: Any) -> Any:
    """Return a text tower as a CLIPTextModel of its own."""
    from transformers import CLIPTextModel

    model = CLIPTextModel(tower.config)
    inner, given = (getattr(each, "text_model", each) for each in (model, tower))
    inner.load_state_dict(given.state_dict())
    return model.eval()


def pipeline(training: Training) -> StableDiffusionPipeline:
    """Return the pipeline of the training's averaged weights, float32."""
    latents = denoiser.cache_latents(training.folder / "data", training.scenes, training.vae)
    config = {**training.vae.config, "scaling_factor": denoiser.scaling_factor(latents)}
    vae = AutoencoderKL.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    vae.load_state_dict(training.vae.state_dict())
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder(training.text_tower),
        tokenizer=training.words,
        unet=training.trained_unet(),
        scheduler=DPMSolverMultistepScheduler(**denoiser.SCHEDULE, steps_offset=1, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def image_processor() -> Any:
    """Return the picture processor that fits the vision tower."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=CHANNEL_MEAN,
        image_std=CHANNEL_SPREAD,
    )


def published_names(path: Path) -> None:
    """Give a text encoder's weights the names of published checkpoints (text_model.*), which every version reads."""
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(path).items()}
    with atomic_file(path) as partial:
        write_safetensors(partial, weights, {"format": "pt"})


def export(training: Training, folder: Path) -> None:
    """Write the pipeline into `folder`, and the whole CLIP (for scores) into its subfolder clip/."""
    pipe = pipeline(training)
    pipe.to(torch.float16)
    with atomic_folder(folder) as partial:
        pipe.save_pretrained(partial)
        published_names(partial / "text_encoder" / "model.safetensors")
        training.towers.half().save_pretrained(partial / "clip")
        image_processor().save_pretrained(partial / "clip")
        for name in ("tokenizer", "clip"):
            (partial / name / "tokenizer.json").unlink(missing_ok=True)
            for file in tokenizer.FILES:
                shutil.copy(training.word_files / file, partial / name / file)
