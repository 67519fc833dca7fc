"""Stable Diffusion 1 and 2: from prompts to conditioning (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import prompts
from ..core.errors import ConfigError, InputError, NonFiniteError
from ..prompts import Encoding, Tower, aligned, given, parse_all
from .common import dtype_of
from .conditioning import Conditioning


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


def encode(
    encoder: Any,
    tokenizer: Any,
    prompt: str | Sequence[str] | None,
    *,
    device: torch.device | str,
    guided: bool,
    negative_prompt: str | Sequence[str] | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    clip_skip: int | None = None,
    prompt_syntax: str | None = None,
    long_prompt: str = "chunk",
    steps: int | None = None,
    read: Callable[..., Any] = encode_ids,
) -> tuple[Encoding, Encoding | None]:
    """Return prompts and negative prompts, encoded, of one length.

    Args:
        guided: whether negative prompts are needed; a missing one is the empty text.
        clip_skip: layers that the prompts leave out; negative prompts leave out none.
        prompt_syntax, long_prompt, steps: see `prompts.parse` and `prompts.encode`.
        read: from (encoder, ids, mask) to hidden and pooled states.

    Raises:
        ConfigError: when there is something to encode and no text encoder or tokenizer.
        InputError: for prompts that their syntax cannot read.
    """
    reading: dict[str, Any] = {"steps": steps, "long_prompt": long_prompt}

    def states(texts: str | Sequence[str], count: int, length: int | None, skip: int | None) -> Encoding:
        reader = partial(read, clip_skip=skip) if skip is not None else read
        texts = [texts] * count if isinstance(texts, str) else texts
        towers = [tower(encoder, tokenizer, device=device, read=reader)]
        return prompts.encode(towers, [parse_all(texts, prompt_syntax)], length=length, **reading)

    if prompt_embeds is None:
        count = 1 if isinstance(prompt, str) else len(prompt or ())
        positive = states(prompt or "", count, None, clip_skip)
    else:
        count, positive = len(prompt_embeds), given(prompt_embeds)
    if not guided:
        return positive, None
    if negative_prompt_embeds is None:
        negative = states(negative_prompt or "", count, positive.tokens, None)
    else:
        negative = given(negative_prompt_embeds)
    positive, negative = aligned(positive, negative)
    return positive, negative


def type_of(encoder: Any, encoding: Encoding) -> torch.dtype:
    """Return the type that conditioning has: the text encoder's, or without one that of the embeddings."""
    own = encoding.states[0][0].hidden.dtype
    return own if encoder is None else dtype_of(encoder, own)
