"""The unconditional UNet (Ho et al. 2020; Song et al. 2021), optionally with class labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...core.config import register_to_config
from ...core.errors import ConfigError, did_you_mean
from ...core.outputs import BaseOutput
from ...nn.embedding import GaussianFourierProjection, TimestepEmbedding, Timesteps, batch_timesteps
from ...nn.norm import activated
from ..base import ModelMixin, check_maps
from .blocks import Common, DownBlock, Given, Level, MidBlock, UpBlock
from .conditioning import LabelsMixin
from .layout import lay_out
from .skip_blocks import SkipDownBlock, SkipUpBlock

TIME_EMBEDDINGS = ("positional", "fourier", "learned")
CLASS_EMBEDDINGS = ("timestep", "identity")
TYPES = ("conv", "resnet")
LISTS = (
    "down_block_types", "mid_block_type", "up_block_types", "block_out_channels", "layers_per_block",
    "attention_head_dim",
)  # fmt: skip
COMMON = (
    "norm_num_groups", "norm_eps", "dropout", "act_fn", "resnet_time_scale_shift", "mid_block_scale_factor",
    "downsample_padding", "downsample_type", "upsample_type",
)  # fmt: skip


@dataclass
class UNet2DOutput(BaseOutput):
    """Prediction of the UNet: `sample` (B, out_channels, H, W)."""

    sample: Tensor


class UNet2DModel(LabelsMixin, ModelMixin):
    """Predicts noise (or the sample, or a score) from a noisy picture and a time.

    The options are those of published configurations. `attention_head_dim` is the width of a head; None makes one
    head of all channels.

    Raises:
        ConfigError: a block name or embedding type is unknown, lists have different lengths, or options contradict.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        self.sample_size = sample_size
        first = block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        width = time_embedding_dim or first * 4
        projected = self._build_time(width)
        self.class_embedding = self._class_embedding(projected, width)
        self._build_blocks(width)
        groups = norm_num_groups if norm_num_groups is not None else min(first // 4, 32)
        self.conv_norm_out = nn.GroupNorm(groups, first, eps=norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    def _build_time(self, width: int) -> int:
        """Create the time embedding; return the width of embedded timesteps."""
        config = self.config
        kind, first = config.time_embedding_type, config.block_out_channels[0]
        projected = first
        if kind == "fourier":
            self.time_proj: nn.Module = GaussianFourierProjection(first, scale=16)
            projected = 2 * first
        elif kind == "positional":
            self.time_proj = Timesteps(first, config.flip_sin_to_cos, config.freq_shift)
        elif kind == "learned":
            if config.num_train_timesteps is None:
                raise ConfigError("time_embedding_type='learned' needs num_train_timesteps")
            self.time_proj = nn.Embedding(config.num_train_timesteps, first)
        else:
            raise ConfigError(f"time_embedding_type is {kind!r}{did_you_mean(str(kind), TIME_EMBEDDINGS)}")
        self.time_embedding = TimestepEmbedding(projected, width)
        return projected

    def _class_embedding(self, projected: int, width: int) -> nn.Module | None:
        kind, count = self.config.class_embed_type, self.config.num_class_embeds
        if kind is None:
            return None if count is None else nn.Embedding(count, width)
        if kind == "timestep":
            return TimestepEmbedding(projected, width)
        if kind == "identity":
            return nn.Identity()
        raise ConfigError(f"class_embed_type is {kind!r}{did_you_mean(str(kind), CLASS_EMBEDDINGS)}")

    def _build_blocks(self, time_channels: int) -> None:
        config = self.config
        for option in ("downsample_type", "upsample_type"):
            if config[option] not in (None, *TYPES):
                raise ConfigError(f"{option} is {config[option]!r}{did_you_mean(str(config[option]), TYPES)}")
        layout = lay_out(
            usable=lambda kind: not (kind.reads_context or kind.adaptive), **{name: config[name] for name in LISTS}
        )
        common = Common(time_channels, config.norm_num_groups, **{name: config[name] for name in COMMON})
        self.down_blocks = nn.ModuleList(
            (SkipDownBlock if level.kind.skip else DownBlock)(level, common) for level in layout.down
        )
        self.mid_block = None if layout.mid is None else self._middle(layout.mid, common)
        self.up_blocks = nn.ModuleList(
            (SkipUpBlock if level.kind.skip else UpBlock)(level, common) for level in layout.up
        )

    def _middle(self, level: Level, common: Common) -> MidBlock:
        """Build the middle block; the norm in its attention is left out where time scales and shifts."""
        config = self.config
        groups = config.norm_num_groups or min(level.channels_out // 4, 32)
        attn_groups = config.attn_norm_num_groups
        if attn_groups is None and config.resnet_time_scale_shift == "default":
            attn_groups = groups
        common = replace(common, norm_num_groups=groups, attn_groups=attn_groups)
        return MidBlock(level, common, attention=config.add_attention)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict from a noisy picture (B, in_channels, H, W) at `timestep`, a number or a tensor of one or B values.

        Raises:
            InputError: a shape does not fit the configuration, or class labels are missing or not wanted.
        """
        config = self.config
        check_maps("sample", sample, "in_channels", config.in_channels)
        x = 2 * sample - 1.0 if config.center_input_sample else sample
        timesteps = batch_timesteps(timestep, x.shape[0], x.device)
        given = Given(self._embed(timesteps, x.dtype, class_labels))
        picture: Tensor | None = x
        x = self.conv_in(x)
        kept: tuple[Tensor, ...] = (x,)
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock):
                x, more, picture = block(x, given, picture)
            else:
                x, more = block(x, given)
            kept += more
        if self.mid_block is not None:
            x = self.mid_block(x, given)
        x, picture = self._go_up(x, kept, given)
        x = self.conv_out(activated(self.conv_norm_out, self.conv_act, x))
        if picture is not None:
            x = x + picture
        if config.time_embedding_type == "fourier":
            x = x / timesteps.to(x.dtype)[:, None, None, None]
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _embed(self, timesteps: Tensor, dtype: torch.dtype, class_labels: Tensor | None) -> Tensor:
        emb = self.time_embedding(self.time_proj(timesteps).to(dtype))
        labels = self.get_class_embed(dtype, class_labels)
        return emb if labels is None else emb + labels

    def _go_up(self, x: Tensor, kept: tuple[Tensor, ...], given: Given) -> tuple[Tensor, Tensor | None]:
        picture = None
        for block in self.up_blocks:
            count = len(block.resnets)
            here, kept = kept[-count:], kept[:-count]
            if isinstance(block, SkipUpBlock):
                x, picture = block(x, here, given, picture)
            else:
                x = block(x, here, given)
        return x, picture
