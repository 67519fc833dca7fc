"""Stable Diffusion XL (Podell et al. 2023, 2307.01952): fine-tuning on captions, whole or as a LoRA, and DreamBooth.

The recipes are those of Stable Diffusion; what differs is said by their settings: the components, the task, the flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.errors import ConfigError, InputError, check_choice, check_number
from .. import latent_xl
from ..settings import at_least, share, told
from ..trainables import Trainable
from . import dreambooth, text_to_image
from .common import ModelSettings, rate_of

BIASES = ("earlier", "later", "range", "none")


@dataclass
class XLSettings(ModelSettings):
    """Settings of recipes that begin with a Stable Diffusion XL pipeline."""

    pretrained_vae_model_name_or_path: str | None = told(
        None, "folder or hub repository of an autoencoder in place of the pipeline's, such as one for fp16"
    )
    crops_coords_top_left_h: int | None = told(None, "top of the crop that the network is told; where it was if unset")
    crops_coords_top_left_w: int | None = told(None, "left of the crop that the network is told; the same")
    wants: ClassVar[tuple[str, ...]] = (*ModelSettings.wants, "text_encoder_2", "tokenizer_2")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        for name in ("crops_coords_top_left_h", "crops_coords_top_left_w"):
            at_least(self, name, 0)

    def replaced(self) -> dict[str, Any]:
        """Return components that are loaded in place of the pipeline's own."""
        from ...models.autoencoders.autoencoder_kl import AutoencoderKL

        place = self.pretrained_vae_model_name_or_path
        return {} if place is None else {"vae": AutoencoderKL.from_pretrained(place, cache_dir=self.cache_dir)}

    def task(self, pipe: Any, parts: Sequence[Trainable]) -> latent_xl.TextToImageXL:
        """Return the training of parts of a pipeline."""
        corner = (self.crops_coords_top_left_h, self.crops_coords_top_left_w)
        return latent_xl.TextToImageXL(
            pipe,
            self.denoiser(pipe.scheduler),
            parts,
            learning_rate=rate_of(self),
            corner=corner,
            text=self.text_options(),
        )

    def text_options(self) -> dict[str, float]:
        """Return the options of the optimizer that text encoders have for themselves."""
        return {}


@dataclass
class BiasSettings(XLSettings):
    """Settings of recipes that may see some noise levels more often than others."""

    timestep_bias_strategy: str = told("none", "levels to prefer: earlier (little noise), later, range or none")
    timestep_bias_multiplier: float = told(1.0, "how many times as likely these levels are")
    timestep_bias_begin: int = told(0, "first level of range")
    timestep_bias_end: int = told(1000, "end of range, which is not part of it")
    timestep_bias_portion: float = told(0.25, "share of all levels that earlier or later stands for")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        check_choice("timestep_bias_strategy", self.timestep_bias_strategy, BIASES)
        share(self, "timestep_bias_portion")
        check_number("timestep_bias_multiplier", self.timestep_bias_multiplier, low=1e-6)
        if self.timestep_bias_strategy == "none" and self.timestep_bias_multiplier != 1:
            raise ConfigError("timestep_bias_multiplier has no effect without timestep_bias_strategy.")
        if not 0 <= self.timestep_bias_begin < self.timestep_bias_end:
            raise InputError(
                f"timestep_bias_begin is {self.timestep_bias_begin} and timestep_bias_end is "
                f"{self.timestep_bias_end}; it must be 0 <= begin < end."
            )

    def odds(self, levels: int) -> Tensor | None:
        """Return how likely every noise level is.

        Raises:
            InputError: for a range that ends behind the last level.
        """
        count = int(self.timestep_bias_portion * levels)
        places = {
            "earlier": slice(0, count),
            "later": slice(levels - count, levels),
            "range": slice(self.timestep_bias_begin, self.timestep_bias_end),
        }
        place = places.get(self.timestep_bias_strategy)
        if place is None:
            return None
        if place.stop > levels:
            raise InputError(f"timestep_bias_end is {place.stop}, but the scheduler has {levels} levels.")
        odds = torch.ones(levels, dtype=torch.float64)
        odds[place] *= self.timestep_bias_multiplier
        return odds


@dataclass
class CaptionSettings(BiasSettings, text_to_image.TextToImageSettings):
    """Settings of both recipes for pictures with captions."""

    resolution: int = told(1024, "height and width in pixels")
    caption_dropout_prob: float = field(default=0.0, init=False)
    proportion_empty_prompts: float = told(0.0, "chance that an example is seen without its caption")

    def __post_init__(self) -> None:
        self.caption_dropout_prob = self.proportion_empty_prompts

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        share(self, "proportion_empty_prompts")
        super().check()


@dataclass
class FullSettings(CaptionSettings, text_to_image.FullSettings):
    """Settings of train_text_to_image_sdxl."""

    output_dir: str = told("sdxl-model-finetuned", "folder for checkpoints, the log and the result")


@dataclass
class LoraSettings(CaptionSettings, text_to_image.LoraSettings):
    """Settings of train_text_to_image_lora_sdxl."""

    output_dir: str = told("sd-model-finetuned-lora", "folder for checkpoints, the log and the result")
    train_text_encoder: bool = told(False, "train a LoRA in both text encoders too")


@dataclass
class DreamBoothSettings(XLSettings, dreambooth.LoraSettings):
    """Settings of train_dreambooth_lora_sdxl."""

    resolution: int = told(1024, "height and width in pixels")
    learning_rate: float = told(1e-4, "of the optimizer, after the warm-up")
    train_text_encoder: bool = told(False, "train a LoRA in both text encoders too")
    text_encoder_lr: float = told(5e-6, "learning rate of the text encoders")
    adam_weight_decay_text_encoder: float = told(1e-3, "weight decay of the text encoders")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        for name in ("text_encoder_lr", "adam_weight_decay_text_encoder"):
            at_least(self, name, 0.0)

    def text_options(self) -> dict[str, float]:
        """Return the options of the optimizer that text encoders have for themselves."""
        return {"lr": rate_of(self, self.text_encoder_lr), "weight_decay": self.adam_weight_decay_text_encoder}


train_full = text_to_image.train_full
train_lora = text_to_image.train_lora
train_dreambooth = dreambooth.train_lora
