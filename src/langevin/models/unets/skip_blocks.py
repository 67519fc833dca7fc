"""Blocks that carry a picture beside the features, progressively shrunk and grown (NCSN++, Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...nn.checkpointing import run_block
from ...nn.resnet import FirResample
from .blocks import DOWN_KINDS, UP_KINDS, Block, Common, Conditions, Level

PICTURE_CHANNELS = 3
SCALE = math.sqrt(2.0)
ATTENTION_GROUPS = 32


def quarter(channels: int) -> int:
    """Number of norm groups for a width: one per four channels, at most 32."""
    return min(channels // 4, 32)


def skip_common(common: Common) -> Common:
    """The options these blocks use: their outputs are divided by the square root of two."""
    return replace(common, attn_groups=ATTENTION_GROUPS)


class SkipDownBlock(Block):
    """Residual blocks (and attentions), then a filtered halving of features and picture.

    forward: features (B, channels_in, H, W) and picture (B, 3, H, W) -> (features, kept feature maps, picture).
    """

    def __init__(self, level: Level, common: Common) -> None:
        super().__init__()
        common, width = skip_common(common), level.channels_out
        self.attention = DOWN_KINDS[level.name].attention
        self.resnets = nn.ModuleList()
        for i in range(level.layers):
            given = width if i else level.channels_in
            self.resnets.append(
                common.resnet(given, width, groups=quarter(given), groups_out=quarter(width), output_scale_factor=SCALE)
            )
        if self.attention is not None:
            self.attentions = nn.ModuleList(
                level.attention(self.attention, i, common, scale=SCALE) for i in range(level.layers)
            )
        self.resnet_down = self.downsamplers = self.skip_conv = None
        if level.resample:
            self.resnet_down = common.resnet(
                width,
                width,
                groups=quarter(width),
                output_scale_factor=SCALE,
                conv_shortcut=True,
                down=True,
                kernel="fir",
            )
            self.downsamplers = nn.ModuleList([FirResample(up=False)])
            self.skip_conv = nn.Conv2d(PICTURE_CHANNELS, width, 1)

    def forward(self, x: Tensor, given: Conditions, picture: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
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
        common, width, last = skip_common(common), level.channels_out, level.layers - 1
        self.attention = UP_KINDS[level.name].attention
        self.resnets = nn.ModuleList()
        for i in range(level.layers):
            own, skip = width if i else level.channels_in, width if i < last else level.channels_skip
            # The published kind with attention counts a quarter of the kept channels only.
            groups = quarter(own + skip) if self.attention is None else min(own + skip // 4, 32)
            self.resnets.append(
                common.resnet(own + skip, width, groups=groups, groups_out=quarter(width), output_scale_factor=SCALE)
            )
        if self.attention is not None:
            self.attentions = nn.ModuleList(level.attention(self.attention, i, common, scale=SCALE) for i in range(1))
        self.upsampler = FirResample(up=True)
        self.resnet_up = self.skip_conv = self.skip_norm = self.act = None
        if level.resample:
            self.resnet_up = common.resnet(
                width,
                width,
                groups=quarter(width),
                output_scale_factor=SCALE,
                conv_shortcut=True,
                up=True,
                kernel="fir",
            )
            self.skip_conv = nn.Conv2d(width, PICTURE_CHANNELS, 3, padding=1)
            self.skip_norm = nn.GroupNorm(quarter(width), width, eps=common.eps)
            self.act = nn.SiLU()

    def forward(
        self, x: Tensor, kept: Sequence[Tensor], given: Conditions, picture: Tensor | None
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
