"""Stable Diffusion XL: two text encoders, and the sizes that the network is told (Podell et al. 2023, 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError
from ..prompts import Condition, Tower
from .common import option
from .conditioning import Conditioning
from .sd import Towers, check_encoded, tower


@dataclass(frozen=True)
class Text(Conditioning):
    """What the network is told about a batch.

    Attributes:
        text: hidden states of both encoders side by side, (batch, tokens, width).
        pooled: the second encoder's projected embedding, (batch, size).
        sizes: (batch, 5 or 6) numbers of section 2.2 in float32; see `Sizes`.
    """

    text: Tensor
    pooled: Tensor
    sizes: Tensor | None = None
    offered: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "text",
        "add_text_embeds": "pooled",
        "add_time_ids": "sizes",
    }

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of the network's call."""
        return {"encoder_hidden_states": self.text, **self.added(text_embeds=self.pooled, time_ids=self.sizes)}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Text:
        """Return it on a device and in a type; the sizes stay float32, since half precision rounds them."""
        moved = super().to(device, dtype)
        return moved if self.sizes is None else replace(moved, sizes=self.sizes.to(device=device))


@dataclass(frozen=True)
class Sizes:
    """What the network is told about the size of a picture, in pixels, height or top first (section 2.2).

    Attributes:
        original: of the picture before it was brought to its size.
        crop: top left corner of the part that was cut out.
        target: of the picture.
        score: aesthetic score, which refiners are told in place of the target size.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]
    score: float | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers in the network's order."""
        return (*self.original, *self.crop, *(self.target if self.score is None else (self.score,)))

    def told(self, prompt: Condition) -> Text:
        """Return the conditioning of encoded prompts with these sizes.

        Raises:
            ConfigError: when there is no pooled embedding.
        """
        rows = torch.tensor(self.numbers, dtype=torch.float32, device=prompt.hidden.device)
        return Text(prompt.hidden, projected(prompt.pooled), rows.repeat(len(prompt.hidden), 1))


def projected(pooled: Tensor | None) -> Tensor:
    """Return the pooled embedding of the second text encoder.

    Raises:
        ConfigError: when there is none.
    """
    if pooled is None:
        raise ConfigError("text_encoder_2 projects no embedding; it must be a CLIPTextModelWithProjection.")
    return pooled


def sizes_of(call: Mapping[str, Any], size: tuple[int, int], *, scored: bool) -> tuple[Sizes, Sizes]:
    """Return the sizes of the prompts and of the negative prompts from a call's arguments.

    A negative value that was not given is that of the prompts; without any, both are the same but for the score.

    Args:
        call: its arguments by name.
        size: height and width of the picture in pixels, for sizes that were not given.
        scored: whether the network is told aesthetic scores.
    """
    original, target = (call.get(name) or size for name in ("original_size", "target_size"))
    crop = call.get("crops_coords_top_left", (0, 0))
    other = [call.get(f"negative_{name}") for name in ("original_size", "target_size")]
    away = tuple(call.get("negative_crops_coords_top_left", (0, 0)))
    if other == [None, None] and away == (0, 0):
        away = crop
    scores = [call.get(f"{name}aesthetic_score") if scored else None for name in ("", "negative_")]
    positive = Sizes(original, crop, target, scores[0])
    return positive, Sizes(other[0] or original, away, other[1] or target, scores[1])


def check_added(unet: Any, cond: Text, *, scored: bool) -> None:
    """Raise ConfigError unless the network was built for these sizes and this pooled embedding.

    Args:
        scored: whether an aesthetic score stands among the sizes.
    """
    wanted, each = (option(unet, n) for n in ("projection_class_embeddings_input_dim", "addition_time_embed_dim"))
    if wanted is None or each is None or cond.sizes is None:
        return
    count, pooled = cond.sizes.shape[1], cond.pooled.shape[1]
    if wanted == count * each + pooled:
        return
    because = f"The unet adds {wanted} numbers to its time embedding"
    if not scored and wanted == (count - 1) * each + pooled:
        raise ConfigError(
            f"{because}, an aesthetic score in place of the target size: it is a refiner. Load it with "
            "StableDiffusionXLImg2ImgPipeline or StableDiffusionXLInpaintPipeline and requires_aesthetics_score=True."
        )
    if scored and wanted == (count + 1) * each + pooled:
        raise ConfigError(f"{because}, with a target size and no aesthetic score; set requires_aesthetics_score=False.")
    raise ConfigError(
        f"{because}; {count} sizes of {each} and a pooled embedding of {pooled} are {count * each + pooled}. "
        f"Load the text_encoder_2 that belongs to the unet, whose projection_dim is {wanted - count * each}."
    )


# Encoding -----------------------------------------------------------------------------------------------------------


def encode_ids(
    encoder: Any, ids: Tensor, mask: Tensor | None = None, *, clip_skip: int | None = None, name: str = "text_encoder"
) -> tuple[Tensor, Tensor | None]:
    """Return hidden states (rows, tokens, width) of the layer before the last and the projected embedding (rows, size).

    The embedding is None for an encoder that projects none.

    Args:
        ids, mask: token ids and which of them count, (rows, tokens), on the encoder's device.
        clip_skip: leave out that many more layers.
        name: of the encoder in an error.

    Raises:
        InputError: when there are not that many layers; NonFiniteError when the encoder returns NaN or infinity.
    """
    output = encoder(ids, attention_mask=mask, output_hidden_states=True)
    layers, skip = output.hidden_states, clip_skip or 0
    if not 0 <= skip < len(layers) - 1:
        raise InputError(f"`clip_skip` is {clip_skip}; this {name} has {len(layers) - 1} layers.")
    hidden, pooled = layers[-2 - skip], output[0] if output[0].ndim == 2 else None
    check_encoded(hidden, *(() if pooled is None else (pooled,)), name=name)
    return hidden, pooled


def two_towers(
    text_encoder: Any, tokenizer: Any, text_encoder_2: Any, tokenizer_2: Any, *, device: torch.device | str
) -> Towers:
    """Return the text encoders of a pipeline, two or the second alone, as `sd.encode` takes them.

    Raises:
        ConfigError: once they are asked for and the second is missing, or one of a tokenizer and its encoder.
    """

    def towers(clip_skip: int | None) -> list[Tower]:
        pairs = {"text_encoder": (text_encoder, tokenizer), "text_encoder_2": (text_encoder_2, tokenizer_2)}
        for name, (encoder, words) in pairs.items():
            if (encoder is None) != (words is None):
                other = name.replace("text_encoder", "tokenizer")
                raise ConfigError(f"This pipeline has only one of {name} and {other}; set both, or neither.")
        if text_encoder_2 is None:
            raise ConfigError(
                "This pipeline has no text_encoder_2; pass `prompt_embeds` and `pooled_prompt_embeds` (and the "
                "negative ones) in place of prompts."
            )
        return [
            tower(*pair, device=device, read=partial(encode_ids, clip_skip=clip_skip, name=name))
            for name, pair in pairs.items()
            if pair[0] is not None
        ]

    return towers
