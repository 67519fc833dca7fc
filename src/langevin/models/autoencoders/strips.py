"""The encoder and decoder of latent diffusion in horizontal strips, equal to the whole up to rounding.

Convolutions see the neighbouring rows, group norms share their statistics over all strips, and attention, as well as
everything at the resolution of the latents, runs on the whole. Of the large feature maps at most two are complete at a
time: the residual stream and the inside of one residual block.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from ...nn.attention import Attention
from ...nn.resnet import ResnetBlock
from ...nn.strips import Strips
from .vae import Decoder, Encoder, Stage


def decode_in_strips(decoder: Decoder, z: Tensor, rows: int, storage: torch.device | str | None = None) -> Tensor:
    """Return `decoder(z)`, computed in strips of `rows` rows of the latents z (B, C, h, w) that wait on `storage`."""
    strips = Strips.split(decoder.mid_block(decoder.conv_in(z)), rows, storage)
    for stage in decoder.up_blocks:
        stage_in_strips(stage, strips)
    norm = strips.group_norm(decoder.conv_norm_out)
    rows_of_picture = strips.map(lambda x: decoder.conv_out(decoder.conv_act(norm(x))), reach=1)
    return torch.cat(list(rows_of_picture), dim=-2)


def encode_in_strips(encoder: Encoder, x: Tensor, rows: int, storage: torch.device | str | None = None) -> Tensor:
    """Return `encoder(x)`, computed in strips of `rows` rows of the picture, a multiple of the factor."""
    strips = Strips.split(x, rows, storage)
    strips.replace(encoder.conv_in, reach=1)
    for stage in encoder.down_blocks:
        stage_in_strips(stage, strips)
    whole = encoder.mid_block(strips.whole())
    return encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(whole)))


def stage_in_strips(stage: Stage, strips: Strips) -> None:
    """Replace `strips` by what `stage` makes of the whole."""
    for index, resnet in enumerate(stage.resnets):
        residual_in_strips(resnet, strips)
        if stage.attentions:
            attention_in_strips(stage.attentions[index], strips)
    if stage.down:
        strips.replace(stage.downsamplers[0], reach=2, scale=Fraction(1, 2))
    if stage.up:
        strips.replace(stage.upsamplers[0], reach=1, scale=2)


def residual_in_strips(block: ResnetBlock, strips: Strips) -> None:
    """Replace `strips` by what a residual block without time embedding and resampling makes of the whole."""
    norm1 = strips.group_norm(block.norm1)
    hidden = Strips(strips.device, strips.storage)
    for index, result in enumerate(strips.map(lambda x: block.conv1(block.nonlinearity(norm1(x))), reach=1)):
        hidden.append(result)
        if block.conv_shortcut is not None:
            strips[index] = block.conv_shortcut(strips[index])
    norm2 = hidden.group_norm(block.norm2)
    for index, result in enumerate(hidden.map(lambda x: block.conv2(block.nonlinearity(norm2(x))), reach=1)):
        strips[index] = strips[index] + result


def attention_in_strips(attention: Attention, strips: Strips) -> None:
    """Replace `strips` by what self-attention over all their pixels makes of them."""
    heights = [part.shape[-2] for part in strips.parts]
    for index, strip in enumerate(attention(strips.whole()).split(heights, dim=-2)):
        strips[index] = strip
