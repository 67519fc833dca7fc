"""DreamBooth (Ruiz et al. 2022, 2208.12242): a model learns one subject from a few pictures, and a word for it.

With prior preservation it also sees pictures of the subject's class, which it drew itself before, so that it does not
forget what else there is in the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...core.errors import ConfigError
from ...core.records import Records, read_folder
from ..data.examples import PictureExamples
from ..data.framing import Framing
from ..data.paired import Paired
from ..proof import Proof
from ..settings import told
from ..trainables import LORA_USE, Trainable, Whole
from ..trainer import Trainer
from .common import (
    ModelSettings,
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
from .subject import SubjectSettings

S = TypeVar("S", bound="DreamBoothSettings")


@dataclass
class DreamBoothSettings(ModelSettings, PreviewSettings, SubjectSettings, BucketSettings, CacheSettings):
    """Settings of both recipes."""

    output_dir: str = told("text-inversion-model", "folder for checkpoints, the log and the result")
    learning_rate: float = told(5e-6, "of the optimizer, after the warm-up")
    train_text_encoder: bool = told(False, "train the text encoder too")
    random_flip: bool = told(False, "mirror half of the pictures")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        for name in ("instance_data_dir", "instance_prompt"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is missing.")
        for name in ("class_data_dir", "class_prompt"):
            given = getattr(self, name)
            if self.with_prior_preservation and not given:
                raise ConfigError(f"{name} is missing: with_prior_preservation needs it.")
            if given and not self.with_prior_preservation:
                raise ConfigError(f"{name} has no effect without with_prior_preservation.")
        self.subjects()

    def subjects(self) -> Records:
        """Return the pictures of the subject."""
        return self.held(read_folder(str(self.instance_data_dir)).checked("image"), "image")

    def examples(self, records: Records, prompt: str | None, pipe: Any) -> PictureExamples:
        """Return the examples of pictures that all show what a prompt says."""
        framing = Framing(self.resolution, self.resolution, self.center_crop, self.random_flip)
        return PictureExamples(records, framing, captions=captions_of(pipe, fixed=prompt))


@dataclass
class FullSettings(DreamBoothSettings):
    """Settings of train_dreambooth."""


@dataclass
class LoraSettings(DreamBoothSettings, LowRankSettings):
    """Settings of train_dreambooth_lora."""

    output_dir: str = told("lora-dreambooth-model", "folder for checkpoints, the log and the result")
    learning_rate: float = told(5e-4, "of the optimizer, after the warm-up")


def trainer(settings: DreamBoothSettings, pipe: Any, parts: list[Trainable]) -> Trainer:
    """Return the trainer of parts of a pipeline."""
    subject = settings.examples(settings.subjects(), settings.instance_prompt, pipe)
    data: Any = subject
    if settings.with_prior_preservation:
        prior = settings.examples(read_folder(str(settings.class_data_dir)), settings.class_prompt, pipe)
        data = Paired(subject, prior, settings.prior_loss_weight)
    settings.spare(pipe)
    run = Trainer(settings.task(pipe, parts), data, settings.bucketed(run_of(settings, len(subject)), data))
    settings.keep(run)
    settings.hold(run, subject)
    run.watch += settings.watch(pipe, run.order)
    return run


def prepared(settings: S) -> tuple[S, Any]:
    """Return settings with a seed and the pipeline to begin with, after it has drawn the pictures of the class."""
    settings = ready(settings)
    pipe = pipeline(settings)
    if settings.with_prior_preservation:
        settings.draw_class(pipe, str(settings.class_data_dir), str(settings.class_prompt))
    return settings, pipe


def train_full(settings: FullSettings) -> Path:
    """Train the UNet, and the text encoder if asked, and return the folder of the pipeline with them.

    Raises:
        ConfigError, InputError: for settings and pictures that cannot be used, before a model is loaded.
    """
    settings, pipe = prepared(settings)
    parts: list[Trainable] = [Whole(name, getattr(pipe, name)) for name in ("unet", *settings.encoders())]
    run = trainer(settings, pipe, parts)
    proof = Proof(pipe, prompted(settings, pipe, str(settings.instance_prompt)))
    return completed(settings, run, pipe.save_pretrained, proof=proof)


def train_lora(settings: LoraSettings) -> Path:
    """Train a LoRA in the UNet, and in the text encoder if asked, and return the folder that holds it.

    Raises:
        ConfigError, InputError: for settings and pictures that cannot be used, before a model is loaded.
    """
    settings, pipe = prepared(settings)
    part = settings.part(pipe, settings.encoders())
    run = trainer(settings, pipe, [part])
    proof = lora_proof(settings, pipe, str(settings.instance_prompt))
    return completed(settings, run, part.save, use=LORA_USE, proof=proof)
