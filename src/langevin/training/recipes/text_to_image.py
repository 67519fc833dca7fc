"""Fine-tuning of Stable Diffusion on pictures and captions: the whole UNet, or a LoRA in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.records import Records
from ..average import Decay
from ..data.examples import PictureExamples
from ..proof import Proof
from ..settings import share, told
from ..trainables import LORA_USE, Trainable, Whole
from ..trainer import Trainer
from .common import (
    AverageSettings,
    ModelSettings,
    PictureSettings,
    PreviewSettings,
    captions_of,
    completed,
    lora_proof,
    pipeline,
    prompted,
    ready,
    run_of,
)
from .feeding import BucketSettings, CacheSettings
from .low_rank import LowRankSettings


@dataclass
class TextToImageSettings(ModelSettings, PictureSettings, BucketSettings, CacheSettings, PreviewSettings):
    """Settings of both recipes."""

    output_dir: str = told("sd-model-finetuned", "folder for checkpoints, the log and the result")
    train_batch_size: int = told(16, "examples per batch of one process")
    num_train_epochs: int = told(100, "how often every example is seen, where max_train_steps says nothing")
    caption_column: str = told("text", "column of the captions, texts or lists of texts")
    caption_dropout_prob: float = told(0.0, "chance that an example is seen without its caption")
    caption_shuffle: bool = told(False, "shuffle the parts of a caption between its commas")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        share(self, "caption_dropout_prob")


@dataclass
class FullSettings(TextToImageSettings, AverageSettings):
    """Settings of train_text_to_image."""


@dataclass
class LoraSettings(TextToImageSettings, LowRankSettings, AverageSettings):
    """Settings of train_text_to_image_lora."""


def trainer(
    settings: TextToImageSettings, records: Records, pipe: Any, part: Trainable, *, average: Decay | None = None
) -> Trainer:
    """Return the trainer of a part of a pipeline."""
    captions = captions_of(
        pipe,
        column=settings.caption_column,
        dropout=settings.caption_dropout_prob,
        shuffle=settings.caption_shuffle,
    )
    data = PictureExamples(records, settings.framing(), {"pixels": settings.image_column}, captions)
    settings.spare(pipe)
    run = settings.bucketed(run_of(settings, len(data), average=average), data)
    training = Trainer(settings.task(pipe, [part]), data, run)
    settings.keep(training)
    settings.hold(training)
    training.watch += settings.watch(pipe, training.order)
    return training


def train_lora(settings: LoraSettings) -> Path:
    """Train a LoRA and return the folder that holds it.

    Raises:
        ConfigError, InputError: for settings and data that cannot be used, before a model is loaded.
    """
    settings = ready(settings)
    records = settings.records(settings.image_column, settings.caption_column)
    pipe = pipeline(settings)
    part = settings.part(pipe, settings.encoders())
    run = trainer(settings, records, pipe, part, average=settings.average())
    proof = lora_proof(settings, pipe, "a picture")
    return completed(settings, run, part.save, use=LORA_USE, proof=proof)


def train_full(settings: FullSettings) -> Path:
    """Train the UNet and return the folder of the pipeline with it.

    Raises:
        ConfigError, InputError: for settings and data that cannot be used, before a model is loaded.
    """
    settings = ready(settings)
    records = settings.records(settings.image_column, settings.caption_column)
    pipe = pipeline(settings)
    run = trainer(settings, records, pipe, Whole("unet", pipe.unet), average=settings.average())
    proof = Proof(pipe, prompted(settings, pipe, "a picture"))
    return completed(settings, run, pipe.save_pretrained, proof=proof)
