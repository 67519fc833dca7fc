"""The tiny autoencoder as its author writes it: two rows of layers (Boer Bohan 2023, TAESD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..family import Config, Facts, Family, Layout, Place
from ..header import Header
from ..rules import Rules, rule

PREFIXES = ("", "taesd_")
SQUEEZES = 1
"""The author's decoder has the squeezing of its input as first layer, which holds no weights."""


def tiny_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of an AutoencoderTiny."""
    widths, blocks = config["decoder_block_out_channels"], config["num_decoder_blocks"]
    layers = 3 + sum(blocks) + 2 * (len(widths) - 1)
    decoder = [rule(f"decoder.{n + SQUEEZES}", f"decoder.layers.{n}") for n in range(layers)]
    return Rules([rule("encoder.{}", "encoder.layers.{}"), *decoder])


def stages(header: Header, half: str) -> tuple[list[int], list[int]]:
    """Return the width and the number of residual blocks of every stage; convolutions part the stages."""
    widths: list[int] = []
    blocks: list[int] = []
    for number in header.numbers_at(f"{half}.{{}}"):
        conv = header.shape(f"{half}.{number}.weight")
        if conv is not None:
            widths.append(conv[0])
            blocks.append(0)
        elif blocks:
            blocks[-1] += 1
    return widths[:-1], blocks[:-1]


def infer_tiny(header: Header) -> Config:
    """Return the options of an AutoencoderTiny that shapes tell."""
    encoder, decoder = (stages(header, half) for half in ("encoder", "decoder"))
    last = max(header.numbers_at("encoder.{}"))
    return {
        "in_channels": header.shapes["encoder.0.weight"][1],
        "latent_channels": header.shapes[f"encoder.{last}.weight"][0],
        "encoder_block_out_channels": encoder[0],
        "num_encoder_blocks": encoder[1],
        "decoder_block_out_channels": decoder[0],
        "num_decoder_blocks": decoder[1],
    }


def recognise_tiny(header: Header) -> Facts | None:
    """Return what a tiny autoencoder's file is."""
    for prefix in PREFIXES:
        if header.has(f"{prefix}encoder.0.weight", f"{prefix}encoder.1.conv.0.weight", f"{prefix}decoder.1.weight"):
            facts = Facts("autoencoder_tiny", "autoencoder", dtype=header.dtype)
            return facts.because("The file has two rows of small convolutional blocks, encoder and decoder.")
    return None


TINY = Layout("tiny autoencoder", "AutoencoderTiny", ("encoder.1.conv.0.weight",), tiny_rules, infer_tiny)
FAMILIES = (Family("autoencoder_tiny", recognise_tiny, (Place("vae", "", TINY, PREFIXES[1:]),)),)
