"""Blocks that carry a picture beside the features, progressively shrunk and grown (NCSN++, Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.checkpointing import run_block
from ...nn.resnet import FirResample, ResnetBlock
from .blocks import Block, Common, Given, Level

PICTURE_CHANNELS = 3
SCALE = math.sqrt(2.0)
ATTENTION_GROUPS = 32


def quarter(channels: int) -> int:
    """Number of norm groups for a width: one per four channels, at most 32."""
    return min(channels // 4, 32)


def skip_resnet(common: Common, channels_in: int, width: int, groups: int | None = None, **options: Any) -> ResnetBlock:
    """Build a residual block, its output divided by the square root of two; `groups` are those of its first norm."""
    given: dict[str, Any] = {"groups": groups or quarter(channels_in), "groups_out": quarter(width), **options}
    return common.resnet(channels_in, width, output_scale_factor=SCALE, **given)


def skip_resampler(common: Common, width: int, **direction: bool) -> ResnetBlock:
    """Build a residual block that resamples through the filter: `up=True` or `down=True`."""
    return skip_resnet(common, width, width, conv_shortcut=True, fir=True, **direction)


def skip_attentions(level: Level, common: Common, count: int) -> nn.ModuleList:
    """Build the attentions of a block, which have their own number of norm groups."""
    common = replace(common, attn_groups=ATTENTION_GROUPS)
    return nn.ModuleList(level.attention(i, common, scale=SCALE) for i in range(count))


class SkipDownBlock(Block):
    """Residual blocks (and attentions), then a filtered halving of features and picture.

    forward: features (B, channels_in, H, W) and picture (B, 3, H, W) -> (features, kept feature maps, picture).
    """

    def __init__(self, level: Level, common: Common) -> None:
        super().__init__()
        width, self.attention = level.channels_out, level.kind.attention
        self.resnets = nn.ModuleList(
            skip_resnet(common, width if i else level.channels_in, width) for i in range(level.layers)
        )
        if self.attention is not None:
            self.attentions = skip_attentions(level, common, level.layers)
        self.resnet_down = self.downsamplers = self.skip_conv = None
        if level.resample:
            self.resnet_down = skip_resampler(common, width, down=True)
            self.downsamplers = nn.ModuleList([FirResample(up=False)])
            self.skip_conv = nn.Conv2d(PICTURE_CHANNELS, width, 1)

    def forward(self, x: Tensor, given: Given, picture: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        kept: list[Tensor] = []
        for i in range(len(self.resnets)):
            x = self.attend(i, self.resnet(i, x, given), given)
            kept.append(x)
        if self.downsamplers is not None:
            x = run_block(self, self.resnet_down, x, given.time)
            picture = self.downsamplers[0](picture)
            x = self.skip_conv(picture) + x
            kept.append(x)
        return x, tuple(kept), picture


class SkipUpBlock(Block):
    """Residual blocks over kept feature maps (one attention after them), then a filtered doubling.

    forward: as `UpBlock`, with the picture grown so far (B, 3, H/2, W/2) or None -> (features, picture or None).
    """

    def __init__(self, level: Level, common: Common) -> None:
        super().__init__()
        width, last, self.attention = level.channels_out, level.layers - 1, level.kind.attention
        self.resnets = nn.ModuleList()
        for i in range(level.layers):
            own, skip = width if i else level.channels_in, width if i < last else level.channels_skip
            # The published kind with attention counts a quarter of the kept channels only.
            groups = quarter(own + skip) if self.attention is None else min(own + skip // 4, 32)
            self.resnets.append(skip_resnet(common, own + skip, width, groups))
        if self.attention is not None:
            self.attentions = skip_attentions(level, common, 1)
        self.upsampler = FirResample(up=True)
        self.resnet_up = self.skip_conv = self.skip_norm = self.act = None
        if level.resample:
            self.resnet_up = skip_resampler(common, width, up=True)
            self.skip_conv = nn.Conv2d(width, PICTURE_CHANNELS, 3, padding=1)
            self.skip_norm = nn.GroupNorm(quarter(width), width, eps=common.norm_eps)
            self.act = nn.SiLU()

    def forward(
        self, x: Tensor, kept: Sequence[Tensor], given: Given, picture: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        for i in range(len(self.resnets)):
            x = self.resnet(i, torch.cat([x, kept[-1 - i]], dim=1), given)
        x = self.attend(0, x, given)
        if picture is not None:
            picture = self.upsampler(picture)
        if self.resnet_up is not None:
            shown = self.skip_conv(self.act(self.skip_norm(x)))
            picture = shown if picture is None else picture + shown
            x = run_block(self, self.resnet_up, x, given.time)
        return x, picture
