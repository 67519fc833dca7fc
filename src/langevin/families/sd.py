"""Stable Diffusion 1 and 2: from prompts to conditioning (Rombach et al. 2022)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError, NonFiniteError
from ..core.logging import get_logger
from .common import dtype_of
from .conditioning import Conditioning

logger = get_logger(__name__)
_tokenizing = threading.Lock()
"""Tokenizers keep padding and truncation as state between a call and its work, so threads take turns."""


@dataclass(frozen=True)
class Text(Conditioning):
    """What the network is told about a batch: `text` (batch, tokens, width)."""

    text: Tensor
    offered: ClassVar[Mapping[str, str]] = {"prompt_embeds": "text"}

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of the network's call."""
        return {"encoder_hidden_states": self.text}


def expand_words(text: str, tokenizer: Any) -> str:
    """Write out learned words that span several tokens: `<cat>` becomes `<cat> <cat>_1 <cat>_2` (Gal et al. 2022).

    A tokenizer holds such a word as the added tokens `word`, `word_1`, `word_2`, ...
    """
    added = getattr(tokenizer, "added_tokens_encoder", None) or {}
    for word in [w for w in added if f"{w}_1" in added and w in text]:
        count = 1
        while f"{word}_{count}" in added:
            count += 1
        text = text.replace(word, " ".join([word, *(f"{word}_{k}" for k in range(1, count))]))
    return text


def tokenize(tokenizer: Any, texts: Sequence[str], *, length: int | None = None) -> Any:
    """Return token ids and mask of `texts`, padded to `length` tokens (the encoder's limit when None).

    Words beyond the limit are dropped; a warning names them.
    """
    limit = length or tokenizer.model_max_length
    texts = [expand_words(text, tokenizer) for text in texts]
    with _tokenizing:
        tokens = tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        whole = tokenizer(texts, padding=False, truncation=False).input_ids
    for text, ids in zip(texts, whole, strict=True):
        if len(ids) > limit:
            dropped = tokenizer.decode(ids[limit - 1 : -1]).strip()
            logger.warning(
                "The prompt %r has %d tokens, the encoder takes %d; dropped: %r", text, len(ids), limit, dropped
            )
    return tokens


def encode_texts(
    encoder: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    device: torch.device | str,
    length: int | None = None,
    clip_skip: int | None = None,
) -> Tensor:
    """Return the text encoder's hidden states (texts, tokens, width).

    Args:
        clip_skip: leave out that many last layers; the final normalisation is applied all the same.

    Raises:
        NonFiniteError: when the encoder returns NaN or infinity.
    """
    tokens = tokenize(tokenizer, texts, length=length)
    mask = tokens.attention_mask.to(device) if getattr(encoder.config, "use_attention_mask", False) else None
    ids = tokens.input_ids.to(device)
    if clip_skip is None:
        hidden = encoder(ids, attention_mask=mask)[0]
    else:
        layers = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        if not 0 <= clip_skip < len(layers) - 1:
            raise InputError(f"`clip_skip` is {clip_skip}; this text encoder has {len(layers) - 1} layers.")
        hidden = getattr(encoder, "text_model", encoder).final_layer_norm(layers[-1 - clip_skip])
    if not torch.isfinite(hidden).all():
        raise NonFiniteError(
            "The text encoder returned NaN or infinity; its weights are damaged.", module="text_encoder"
        )
    return hidden


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
    per_prompt: int = 1,
    clip_skip: int | None = None,
) -> tuple[Text, Text | None]:
    """Return the conditioning of prompts and of negative prompts, each row `per_prompt` times.

    Args:
        guided: whether negative prompts are needed; a missing one is the empty text.

    Raises:
        ConfigError: when there is something to encode and no text encoder or tokenizer.
    """

    def embed(texts: str | Sequence[str], count: int, length: int | None, skip: int | None) -> Tensor:
        if encoder is None or tokenizer is None:
            missing = "text_encoder" if encoder is None else "tokenizer"
            raise ConfigError(f"This pipeline has no {missing}; pass `prompt_embeds` (and `negative_prompt_embeds`).")
        texts = [texts] * count if isinstance(texts, str) else list(texts)
        return encode_texts(encoder, tokenizer, texts, device=device, length=length, clip_skip=skip)

    if prompt_embeds is None:
        count = 1 if isinstance(prompt, str) else len(prompt or ())
        prompt_embeds = embed(prompt or "", count, None, clip_skip)
    dtype = prompt_embeds.dtype if encoder is None else dtype_of(encoder, prompt_embeds.dtype)
    positive = Text(prompt_embeds).to(device, dtype).repeat(per_prompt)
    if not guided:
        return positive, None
    if negative_prompt_embeds is None:
        count, length = prompt_embeds.shape[:2]
        negative_prompt_embeds = embed(negative_prompt or "", count, length, None)
    return positive, Text(negative_prompt_embeds).to(device, dtype).repeat(per_prompt)
