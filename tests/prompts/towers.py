"""Tiny random text encoders, one as in Stable Diffusion and a pair as in SDXL, and plain encoding to compare with."""

from __future__ import annotations

from pathlib import Path

import torch

from langevin.prompts.reader import Tower
from tests.pipelines import tiny


def tokenizer(folder: Path, pad: str | None = None):
    """A CLIP tokenizer of 77 tokens that knows letters, "cat" and "dog"; `pad` is another padding token."""
    tokenizer = tiny.tokenizer(folder)
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer


def encoder():
    """The tiny encoder, with final biases, so that its states have a mean."""
    encoder = tiny.text_encoder()
    with torch.no_grad():
        getattr(encoder, "text_model", encoder).final_layer_norm.bias.add_(0.3)
    return encoder.requires_grad_(False)


def second_encoder(size: int = 194):
    """A tiny encoder with a projection and another width."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(5)
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=48,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=24,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )
    return CLIPTextModelWithProjection(config).eval().requires_grad_(False)


def tower(tokenizer, encoder, *, masked: bool = False) -> Tower:
    """A tower as Stable Diffusion uses it; `calls` of the function lists the shapes it was asked."""

    def encode_ids(ids, mask):
        encode_ids.calls.append(tuple(ids.shape))
        return encoder(ids, attention_mask=mask)[0], None

    encode_ids.calls = []
    return Tower(encode_ids, tokenizer, masked)


def deep_tower(tokenizer, encoder) -> Tower:
    """A tower as SDXL uses it: the last state but one, and pooled states when the encoder projects."""

    def encode_ids(ids, mask):
        output = encoder(ids, attention_mask=mask, output_hidden_states=True)
        return output.hidden_states[-2], getattr(output, "text_embeds", None)

    return Tower(encode_ids, tokenizer)


def states(tower: Tower, text: str, hide: tuple[int, ...] = ()):
    """Return the hidden states (1, 77, width) of a short text the plain way, positions `hide` masked."""
    tokens = tower.tokenizer(text, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    mask = None
    if hide:
        mask = torch.ones_like(tokens.input_ids)
        mask[0, list(hide)] = 0
    return tower.encode_ids(tokens.input_ids, mask)[0]
