"""InstructPix2Pix (Brooks et al. 2022, 2211.09800): a model learns to edit pictures as an instruction says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import nn

from ...core.errors import ConfigError, InputError
from ..data.edits import Edits
from ..data.examples import Captions
from ..proof import Proof
from ..settings import told
from ..shown import Instructed
from ..trainables import Whole
from ..trainer import Trainer
from .common import (
    AverageSettings,
    LookSettings,
    ModelSettings,
    PictureSettings,
    completed,
    pipeline,
    rate_of,
    ready,
    run_of,
    speckled,
    words_of,
)
from .feeding import BucketSettings, CacheSettings


@dataclass
class EditSettings(ModelSettings, PictureSettings, BucketSettings, CacheSettings, AverageSettings, LookSettings):
    """Settings of train_instruct_pix2pix."""

    output_dir: str = told("instruct-pix2pix-model", "folder for checkpoints, the log and the result")
    train_batch_size: int = told(16, "examples per batch of one process")
    num_train_epochs: int = told(100, "how often every example is seen, where max_train_steps says nothing")
    resolution: int = told(256, "height and width in pixels")
    image_column: str = field(default="", init=False)
    original_image_column: str = told("input_image", "column of the pictures before the edit")
    edited_image_column: str = told("edited_image", "column of the pictures after it")
    edit_prompt_column: str = told("edit_prompt", "column of the instructions, texts or lists of texts")
    conditioning_dropout_prob: float = told(
        0.0,
        "share of examples without the instruction, as many without the picture, as many without both; 0.05 is usual",
    )
    val_image_url: str | None = told(None, "address or file of a picture that is edited on the way")
    validation_prompt: str | None = told(None, "the instruction for it")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        if not 0 <= self.conditioning_dropout_prob <= 1 / 3:
            raise InputError(
                f"conditioning_dropout_prob is {self.conditioning_dropout_prob}; it is a share for each of three cases "
                "and must be from 0 to 1/3."
            )
        if bool(self.val_image_url) != bool(self.validation_prompt):
            raise ConfigError("val_image_url and validation_prompt go together: give both or none.")

    def rows(self) -> list[dict[str, Any]]:
        """Return what is drawn on the way.

        Raises:
            InputError: when the picture cannot be read.
        """
        if not self.val_image_url:
            return []
        return [{"prompt": self.validation_prompt, "image": self.shown(self.val_image_url), "num_inference_steps": 20}]


def widen(unet: Any, channels: int) -> None:
    """Let a UNet see further channels; their weights are zero, so that they change nothing at first.

    Raises:
        ConfigError: when it sees more already.
    """
    layer = unet.conv_in
    if layer.in_channels > channels:
        raise ConfigError(f"The UNet sees {layer.in_channels} channels; begin with one that sees {channels} or fewer.")
    wide = nn.Conv2d(channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    weight = F.pad(layer.weight.detach(), (0, 0, 0, 0, 0, channels - layer.in_channels))
    wide.load_state_dict({**layer.state_dict(), "weight": weight})
    unet.conv_in = wide
    unet.register_to_config(in_channels=channels)


def train(settings: EditSettings) -> Path:
    """Train a UNet that sees the picture to edit and return the folder of the pipeline with it.

    Raises:
        ConfigError, InputError: for settings and data that cannot be used, before a model is loaded.
    """
    from ...pipelines.stable_diffusion_edit import StableDiffusionInstructPix2PixPipeline

    settings = ready(settings)
    columns = {"pixels": settings.edited_image_column, "original": settings.original_image_column}
    records = settings.records(*columns.values(), settings.edit_prompt_column)
    rows = settings.rows()
    pipe = StableDiffusionInstructPix2PixPipeline.from_pipe(pipeline(settings))
    widen(pipe.unet, 2 * pipe.vae.config.latent_channels)
    if settings.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    captions = Captions(words_of(pipe.tokenizer), column=settings.edit_prompt_column)
    data = Edits(records, settings.framing(), columns, captions, dropout=settings.conditioning_dropout_prob)
    part, rate = Whole("unet", pipe.unet), rate_of(settings)
    task = Instructed(pipe, settings.denoiser(pipe.scheduler), [part], learning_rate=rate)
    run = Trainer(task, data, settings.bucketed(run_of(settings, len(data), average=settings.average()), data))
    settings.keep(run)
    settings.hold(run)
    run.watch += settings.looks(pipe, run.order, rows)
    proof = Proof(pipe, {"prompt": "edit it", "image": speckled(settings, pipe), "output_type": "latent"})
    return completed(settings, run, pipe.save_pretrained, proof=proof)
