"""Blocks whose norms are steered by time (Crowson 2022, k-diffusion), those of the latent upscaler's UNet.

Every residual block and attention normalises with `AdaGroupNorm` in groups of 32 channels; the resolution changes
through a filter with reflected borders. A way up reads one kept feature map per level, and the lowest level none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.attention import Attention
from ...nn.checkpointing import run_block
from ...nn.norm import AdaGroupNorm
from ...nn.resnet import AdaResnetBlock, FirResample
from .blocks import Block, Common, Given, Level

GROUP = 32


def groups(channels: int) -> int:
    """Number of norm groups for a width: one per 32 channels."""
    return max(channels // GROUP, 1)


class KAttention(nn.Module):
    """Attention to the context, at the lowest level after attention to positions, each normalised by time.

    forward: features (B, C, H, W) and what blocks receive -> features (B, C, H, W).
    """

    def __init__(self, width: int, level: Level, common: Common) -> None:
        super().__init__()
        head_dim = level.head_dim or width
        shared: dict[str, Any] = {
            "heads": width // head_dim,
            "dim_head": head_dim,
            "bias": True,
            "upcast_attention": common.upcast_attention,
        }
        self.norm1 = self.attn1 = None
        if level.deepest:
            self.norm1 = AdaGroupNorm(common.time_channels, width, groups(width))
            self.attn1 = Attention(width, None, **shared)
        self.norm2 = AdaGroupNorm(common.time_channels, width, groups(width))
        self.attn2 = Attention(width, level.context_channels, cross_attention_norm="layer_norm", **shared)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        kwargs = given.kwargs or {}
        if self.attn1 is not None:
            x = x + self.attn1(self.norm1(x, given.time), None, given.mask, **kwargs)
        return x + self.attn2(self.norm2(x, given.time), given.context, given.context_mask, **kwargs)


class KBlock(Block):
    """Common part: residual blocks, each followed by an attention if the kind says so."""

    def build(self, level: Level, common: Common, widths: Sequence[tuple[int, int, int]]) -> None:
        """Create one residual block, and attention, per (width in, inner width, width out)."""
        self.resnets = nn.ModuleList(
            AdaResnetBlock(
                given,
                inner,
                last_channels=out,
                time_channels=common.time_channels,
                groups=groups(given),
                groups_out=groups(inner),
                eps=common.norm_eps,
                dropout=common.dropout,
                act=common.act_fn,
            )
            for given, inner, out in widths
        )
        if self.attention is not None:
            self.attentions = nn.ModuleList(KAttention(out, level, common) for _, _, out in widths)

    def attend(self, layer: int, x: Tensor, given: Given) -> Tensor:
        """Apply attention `layer`, if the block has any."""
        return x if self.attention is None else run_block(self, self.attentions[layer], x, given)


class KDownBlock(KBlock):
    """Residual blocks and attentions, then a filtered halving. forward: as `DownBlock`; the halved map is not kept."""

    adds_inside = True

    def __init__(self, level: Level, common: Common) -> None:
        super().__init__()
        self.attention = level.kind.attention
        width = level.channels_out
        given = [level.channels_in, *[width] * (level.layers - 1)]
        self.build(level, common, [(channels, width, width) for channels in given])
        self.downsamplers = nn.ModuleList([FirResample(up=False, reflect=True)]) if level.resample else None
        self.kept_channels = (width,) * level.layers

    def forward(
        self, x: Tensor, given: Given, extra_residual: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept: list[Tensor] = []
        for i in range(len(self.resnets)):
            x = self.attend(i, self.resnet(i, x, given), given)
            kept.append(x)
        if extra_residual is not None:
            x = kept[-1] = x + extra_residual
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
        return x, tuple(kept)


class KUpBlock(KBlock):
    """Residual blocks and attentions over the last kept map, then a filtered doubling. forward: as `UpBlock`."""

    def __init__(self, level: Level, common: Common) -> None:
        super().__init__()
        self.attention = level.kind.attention
        self.reads_kept = not level.deepest
        width, layers = level.channels_out, level.layers - 1
        first = width if level.deepest else 2 * width
        given = [first, *[width] * (layers - 1)]
        out = [*[width] * (layers - 1), level.channels_skip]
        self.build(level, common, [(a, width, b) for a, b in zip(given, out, strict=True)])
        self.upsamplers = nn.ModuleList([FirResample(up=True, reflect=True)]) if level.resample else None

    def forward(
        self, x: Tensor, kept: Sequence[Tensor], given: Given, output_size: tuple[int, int] | None = None
    ) -> Tensor:
        if self.reads_kept:
            x = torch.cat([x, kept[-1]], dim=1)
        for i in range(len(self.resnets)):
            x = self.attend(i, self.resnet(i, x, given), given)
        return x if self.upsamplers is None else self.upsamplers[0](x)
