"""The blocks of UNets: one class for going down, one for the middle, one for going up.

A published block name is a row of data here: which attention follows each residual block, and how the resolution
changes. Modules are named `resnets.N`, `attentions.N`, `downsamplers.0`, `upsamplers.0` whatever the row says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ...nn.attention import Attention
from ...nn.checkpointing import run_block
from ...nn.resnet import Downsample, ResnetBlock, Upsample
from ...nn.transformer import Transformer2D

if TYPE_CHECKING:
    from ...nn.freeu import FreeU


@dataclass(frozen=True)
class Kind:
    """What a published block name stands for.

    attention: None, "tokens" (self-attention over positions), "transformer" (`Transformer2D` with cross-attention),
    "added" (attention to positions and context at once) or "adaptive" (cross-attention normalised by time).
    resample: "conv", "resnet" (a residual block that resamples) or "option" (the model's `downsample_type` or
    `upsample_type` decides). skip: carries a picture beside the features (Song et al. 2021, NCSN++). adaptive: norms
    are steered by time (`k_blocks`).
    """

    attention: str | None = None
    resample: str = "conv"
    skip: bool = False
    adaptive: bool = False

    @property
    def reads_context(self) -> bool:
        """Whether blocks of this kind need an encoder's output."""
        return self.attention in ("transformer", "added", "adaptive")

    def resampling(self, option: str | None) -> str:
        """Return how the resolution changes, given the model's own choice."""
        return option or "conv" if self.resample == "option" else self.resample


DOWN_KINDS: dict[str, Kind] = {
    "DownBlock2D": Kind(),
    "AttnDownBlock2D": Kind("tokens", "option"),
    "CrossAttnDownBlock2D": Kind("transformer"),
    "ResnetDownsampleBlock2D": Kind(None, "resnet"),
    "SimpleCrossAttnDownBlock2D": Kind("added", "resnet"),
    "SkipDownBlock2D": Kind(None, "resnet", skip=True),
    "AttnSkipDownBlock2D": Kind("tokens", "resnet", skip=True),
    "KDownBlock2D": Kind(adaptive=True),
    "KCrossAttnDownBlock2D": Kind("adaptive", adaptive=True),
}
UP_KINDS = {name.replace("Down", "Up"): kind for name, kind in DOWN_KINDS.items()}
"""The mirror images, named alike: "UpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D", ..."""
MID_KINDS: dict[str, Kind] = {
    "UNetMidBlock2D": Kind("tokens"),
    "UNetMidBlock2DCrossAttn": Kind("transformer"),
    "UNetMidBlock2DSimpleCrossAttn": Kind("added"),
}


@dataclass(frozen=True)
class Common:
    """Options that all blocks of one UNet share, named as in its configuration.

    time_channels: width of the time embedding. attn_groups: norm groups of attention of kind "tokens", None for none.
    """

    time_channels: int
    attn_groups: int | None
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    act_fn: str = "silu"
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    use_linear_projection: bool = False
    upcast_attention: bool = False
    cross_attention_norm: str | None = None

    def resnet(self, channels_in: int, channels_out: int, **overrides: Any) -> ResnetBlock:
        """Build a residual block of this UNet."""
        options: dict[str, Any] = {
            "time_channels": self.time_channels,
            "groups": self.norm_num_groups,
            "eps": self.norm_eps,
            "dropout": self.dropout,
            "act": self.act_fn,
            "time_embedding_norm": self.resnet_time_scale_shift,
        }
        return ResnetBlock(channels_in, channels_out, **{**options, **overrides})

    def extras(self, kind: Kind) -> dict[str, Any]:
        """Return the options of residual blocks that only kinds which resample by residual blocks honour."""
        if kind.resample != "resnet":
            return {}
        return {"output_scale_factor": self.resnet_out_scale_factor, "skip_time_act": self.resnet_skip_time_act}


@dataclass(frozen=True)
class Level:
    """What differs from block to block: widths, depth and attention."""

    kind: Kind
    channels_in: int
    channels_out: int
    layers: int
    resample: bool = True
    channels_skip: int = 0
    heads: int = 1
    head_dim: int | None = None
    context_channels: int | None = None
    transformer_layers: Sequence[int] = ()
    only_cross_attention: bool = False
    deepest: bool = False

    def attention(self, layer: int, common: Common, *, scale: float = 1.0) -> nn.Module:
        """Build the attention that follows residual block `layer`; `scale` divides the output of kind "tokens"."""
        width = self.channels_out
        if self.kind.attention == "transformer":
            return Transformer2D(
                self.heads,
                width // self.heads,
                width,
                num_layers=self.transformer_layers[layer],
                norm_num_groups=common.norm_num_groups,
                cross_attention_dim=self.context_channels,
                use_linear_projection=common.use_linear_projection,
                only_cross_attention=self.only_cross_attention,
                upcast_attention=common.upcast_attention,
            )
        head_dim = self.head_dim or width
        shared: dict[str, Any] = {
            "heads": width // head_dim,
            "dim_head": head_dim,
            "bias": True,
            "upcast_softmax": True,
            "residual_connection": True,
        }
        if self.kind.attention == "tokens":
            return Attention(
                width, norm_num_groups=common.attn_groups, eps=common.norm_eps, rescale_output_factor=scale, **shared
            )
        return Attention(
            width,
            width,
            added_kv_proj_dim=self.context_channels,
            norm_num_groups=common.norm_num_groups,
            only_cross_attention=self.only_cross_attention,
            cross_attention_norm=common.cross_attention_norm,
            **shared,
        )


class Given(NamedTuple):
    """What every block of one forward pass receives beside the features."""

    time: Tensor | None
    context: Tensor | None = None
    mask: Tensor | None = None
    context_mask: Tensor | None = None
    kwargs: dict[str, Any] | None = None


def apply_attention(kind: str, attention: nn.Module, x: Tensor, given: Given) -> Tensor:
    """Call an attention of the given kind on features (B, C, H, W)."""
    if kind == "transformer":
        return attention(x, given.context, given.mask, given.context_mask, given.kwargs)
    if kind == "tokens":
        return attention(x, **(given.kwargs or {}))
    mask = given.mask
    if mask is None and given.context is not None:
        mask = given.context_mask
    return attention(x, given.context, mask, **(given.kwargs or {}))


class Block(nn.Module):
    """Common part of the blocks: run residual blocks and attentions, recomputing them in the backward pass if asked."""

    gradient_checkpointing = False
    attention: str | None = None

    @property
    def adds_inside(self) -> bool:
        """Whether a map of an adapter is added before the block changes the resolution."""
        return self.attention in ("transformer", "added")

    def resnet(self, layer: int, x: Tensor, given: Given) -> Tensor:
        """Apply residual block `layer`."""
        return run_block(self, self.resnets[layer], x, given.time)

    def attend(self, layer: int, x: Tensor, given: Given) -> Tensor:
        """Apply attention `layer`, if the block has any."""
        if self.attention is None:
            return x
        return apply_attention(self.attention, self.attentions[layer], x, given)


class DownBlock(Block):
    """Residual blocks, each followed by an attention if the kind says so, then one halving of the resolution.

    forward: features (B, channels_in, H, W) -> (features, every intermediate feature map for the way up).
    `extra_residual` is added to the features before the halving (T2I adapters, Mou et al. 2023). `maps` ends the block
    after its first feature maps, for a pass that leaves the deep part out.
    """

    def __init__(self, level: Level, common: Common) -> None:
        super().__init__()
        kind, width = level.kind, level.channels_out
        self.attention = kind.attention
        options = common.extras(kind)
        self.resnets = nn.ModuleList(
            common.resnet(width if i else level.channels_in, width, **options) for i in range(level.layers)
        )
        if kind.attention is not None:
            self.attentions = nn.ModuleList(level.attention(i, common) for i in range(level.layers))
        how = kind.resampling(common.downsample_type)
        self.downsamplers = None
        if level.resample and how == "resnet":
            self.downsamplers = nn.ModuleList([common.resnet(width, width, down=True, **options)])
        elif level.resample:
            self.downsamplers = nn.ModuleList([Downsample(width, use_conv=True, padding=common.downsample_padding)])
        self.kept_channels = (width,) * (level.layers + (self.downsamplers is not None))

    def forward(
        self, x: Tensor, given: Given, extra_residual: Tensor | None = None, maps: int | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept: list[Tensor] = []
        last = len(self.resnets) - 1
        for i in range(last + 1)[:maps]:
            x = self.attend(i, self.resnet(i, x, given), given)
            if i == last and extra_residual is not None:
                x = x + extra_residual
            kept.append(x)
        if self.downsamplers is not None and (maps is None or maps > len(kept)):
            layer = self.downsamplers[0]
            x = run_block(self, layer, x, given.time) if isinstance(layer, ResnetBlock) else layer(x)
            kept.append(x)
        return x, tuple(kept)


class MidBlock(Block):
    """A residual block, then pairs of attention and residual block, at the lowest resolution."""

    def __init__(self, level: Level, common: Common, *, attention: bool = True) -> None:
        super().__init__()
        kind, width, scale = level.kind, level.channels_out, common.mid_block_scale_factor
        self.attention = kind.attention if attention else None
        options: dict[str, Any] = {"output_scale_factor": scale}
        if kind.attention == "added":
            options["skip_time_act"] = common.resnet_skip_time_act
        self.resnets = nn.ModuleList(common.resnet(width, width, **options) for _ in range(level.layers + 1))
        if self.attention is not None:
            self.attentions = nn.ModuleList(level.attention(i, common, scale=scale) for i in range(level.layers))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        x = self.resnet(0, x, given)
        for i in range(len(self.resnets) - 1):
            x = self.resnet(i + 1, self.attend(i, x, given), given)
        return x


class UpBlock(Block):
    """Residual blocks that take a kept feature map each, followed by attention if the kind says so, then one doubling.

    forward: features (B, channels_in, H, W) and the feature maps kept on the way down, of which the last ones are
    used first. `output_size` is the height and width to reach where doubling would miss it. `first` and `stop` bound
    the layers of a pass through a part of the block; one that stops does not double.

    Attributes:
        freeu: what is done to both before they are joined, if anything.
    """

    freeu: FreeU | None = None

    def __init__(self, level: Level, common: Common) -> None:
        super().__init__()
        kind, width, last = level.kind, level.channels_out, level.layers - 1
        self.attention = kind.attention
        options = common.extras(kind)
        self.resnets = nn.ModuleList()
        for i in range(level.layers):
            own, skip = width if i else level.channels_in, width if i < last else level.channels_skip
            self.resnets.append(common.resnet(own + skip, width, **options))
        if kind.attention is not None:
            self.attentions = nn.ModuleList(level.attention(i, common) for i in range(level.layers))
        how = kind.resampling(common.upsample_type)
        self.upsamplers = None
        if level.resample and how == "resnet":
            self.upsamplers = nn.ModuleList([common.resnet(width, width, up=True, **options)])
        elif level.resample:
            self.upsamplers = nn.ModuleList([Upsample(width, use_conv=True)])

    def forward(
        self,
        x: Tensor,
        kept: Sequence[Tensor],
        given: Given,
        output_size: tuple[int, int] | None = None,
        first: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        count = len(self.resnets)
        for i in range(first, count if stop is None else stop):
            skip = kept[count - 1 - i]
            if self.freeu is not None:
                x, skip = self.freeu(x, skip)
            x = self.attend(i, self.resnet(i, torch.cat([x, skip], dim=1), given), given)
        if self.upsamplers is not None and stop is None:
            layer = self.upsamplers[0]
            x = run_block(self, layer, x, given.time) if isinstance(layer, ResnetBlock) else layer(x, output_size)
        return x
