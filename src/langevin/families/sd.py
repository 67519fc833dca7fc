"""Stable Diffusion 1 and 2: from prompts to conditioning (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import prompts
from ..core.errors import ConfigError, InputError, NonFiniteError
from ..prompts import Encoding, Tower, aligned, given, parse_all
from .common import dtype_of
from .conditioning import Conditioning

Prompts = str | Sequence[str] | None
Towers = Callable[[int | None], Sequence[Tower]]
"""From `clip_skip`, the last layers to leave out, to the text encoders of a pipeline."""


@dataclass(frozen=True)
class Text(Conditioning):
    """What the network is told about a batch: `text` (batch, tokens, width)."""

    text: Tensor
    offered: ClassVar[Mapping[str, str]] = {"prompt_embeds": "text"}

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of the network's call."""
        return {"encoder_hidden_states": self.text, **self.added()}


def encode_ids(
    encoder: Any, ids: Tensor, mask: Tensor | None = None, *, clip_skip: int | None = None
) -> tuple[Tensor, None]:
    """Return a text encoder's hidden states (rows, tokens, width).

    Args:
        ids, mask: token ids and which of them count, (rows, tokens), on the encoder's device.
        clip_skip: leave out that many last layers; the final normalisation is applied all the same.

    Raises:
        InputError: when there are not that many layers.
        NonFiniteError: when the encoder returns NaN or infinity.
    """
    if clip_skip is None:
        hidden = encoder(ids, attention_mask=mask)[0]
    else:
        layers = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        if not 0 <= clip_skip < len(layers) - 1:
            raise InputError(f"`clip_skip` is {clip_skip}; this text encoder has {len(layers) - 1} layers.")
        hidden = getattr(encoder, "text_model", encoder).final_layer_norm(layers[-1 - clip_skip])
    check_encoded(hidden)
    return hidden, None


def check_encoded(*states: Tensor, name: str = "text_encoder") -> None:
    """Raise NonFiniteError unless a text encoder's states are finite."""
    if not all(torch.isfinite(state).all() for state in states):
        what = name.replace("_", " ")
        raise NonFiniteError(f"The {what} returned NaN or infinity; its weights are damaged.", module=name)


def tower(encoder: Any, tokenizer: Any, *, device: torch.device | str, read: Callable[..., Any]) -> Tower:
    """Return a text encoder as prompts are read with it.

    Args:
        read: from (encoder, ids, mask) to hidden and pooled states.

    Raises:
        ConfigError: when there is no text encoder or tokenizer.
    """
    if encoder is None or tokenizer is None:
        missing = "text_encoder" if encoder is None else "tokenizer"
        raise ConfigError(f"This pipeline has no {missing}; pass `prompt_embeds` (and `negative_prompt_embeds`).")

    def encode(ids: Tensor, mask: Tensor | None) -> Any:
        return read(encoder, ids.to(device), None if mask is None else mask.to(device))

    return Tower(encode, tokenizer, masked=bool(getattr(encoder.config, "use_attention_mask", False)))


def one_tower(
    encoder: Any, tokenizer: Any, *, device: torch.device | str, read: Callable[..., Any] = encode_ids
) -> Towers:
    """Return the only text encoder of a pipeline, as `encode` takes it; `tower` says how it is read."""

    def towers(clip_skip: int | None) -> list[Tower]:
        reader = read if clip_skip is None else partial(read, clip_skip=clip_skip)
        return [tower(encoder, tokenizer, device=device, read=reader)]

    return towers


def encode(
    towers: Towers,
    prompt: Prompts,
    *,
    guided: bool,
    prompt_2: Prompts = None,
    negative_prompt: Prompts = None,
    negative_prompt_2: Prompts = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    pooled_prompt_embeds: Tensor | None = None,
    negative_pooled_prompt_embeds: Tensor | None = None,
    clip_skip: int | None = None,
    zeros: bool = False,
    prompt_syntax: str | None = None,
    long_prompt: str = "chunk",
    steps: int | None = None,
) -> tuple[Encoding, Encoding | None]:
    """Return prompts and negative prompts, encoded, of one length.

    Args:
        towers: makes the text encoders when there is something to encode.
        guided: whether negative prompts are needed.
        prompt_2, negative_prompt_2: for the second of two encoders, or the only one; the other prompt where None.
        clip_skip: layers that the prompts leave out; negative prompts leave out none.
        zeros: a negative prompt that was not given is all zeros (`force_zeros_for_empty_prompt`), not the empty text.
        prompt_syntax, long_prompt, steps: see `prompts.parse` and `prompts.encode`.

    Raises:
        ConfigError: when there is something to encode and an encoder or a tokenizer is missing.
        InputError: for prompts that their syntax cannot read.
    """

    def states(texts: Sequence[Prompts], count: int, length: int | None, skip: int | None) -> Encoding:
        made = towers(skip)
        many = [[text or ""] * count if isinstance(text, str) else text or "" for text in texts[-len(made) :]]
        scripts = [parse_all(text, prompt_syntax) for text in many]
        return prompts.encode(made, scripts, steps=steps, long_prompt=long_prompt, length=length)

    if prompt_embeds is None:
        count = 1 if isinstance(prompt, str) else len(prompt or ())
        positive = with_pooled(states((prompt, prompt_2 or prompt), count, None, clip_skip), pooled_prompt_embeds)
    else:
        count, positive = len(prompt_embeds), given(prompt_embeds, pooled_prompt_embeds)
    if not guided:
        return positive, None
    if negative_prompt_embeds is not None:
        negative = given(negative_prompt_embeds, negative_pooled_prompt_embeds)
    else:
        if zeros and negative_prompt is None and negative_prompt_2 is None:
            first = positive.states[0][0]
            pooled = None if first.pooled is None else torch.zeros_like(first.pooled)
            negative = given(torch.zeros_like(first.hidden), pooled)
        else:
            texts = (negative_prompt or "", negative_prompt_2 or negative_prompt or "")
            negative = states(texts, count, positive.tokens, None)
        negative = with_pooled(negative, negative_pooled_prompt_embeds)
    positive, negative = aligned(positive, negative)
    return positive, negative


def with_pooled(encoding: Encoding, pooled: Tensor | None) -> Encoding:
    """Return an encoding with other pooled embeddings, or as it is when there are none."""
    if pooled is None:
        return encoding
    states = tuple(tuple(replace(one, pooled=pooled) for one in state) for state in encoding.states)
    return replace(encoding, states=states)


def rows(
    encodings: Sequence[Encoding | None], *parts: str, per_prompt: int, device: torch.device | str, dtype: torch.dtype
) -> list[Tensor | None]:
    """Return what `encode_prompt` does: each part of the encodings in turn, `per_prompt` rows per prompt, or None.

    Raises:
        InputError: for prompts that are more than one condition.
    """
    conditions = [None if encoding is None else encoding.only() for encoding in encodings]
    found = [getattr(condition, part, None) for part in parts for condition in conditions]
    return [None if part is None else part.to(device, dtype).repeat_interleave(per_prompt, 0) for part in found]


def type_of(encoder: Any, encoding: Encoding) -> torch.dtype:
    """Return the type that conditioning has: the text encoder's, or without one that of the embeddings."""
    own = encoding.states[0][0].hidden.dtype
    return own if encoder is None else dtype_of(encoder, own)
