"""The conditional UNet of latent and pixel diffusion models (Ronneberger 2015; Ho et al. 2020; Rombach et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.config import register_to_config
from ...core.errors import ConfigError, InputError
from ...core.outputs import BaseOutput
from ...nn.activation import activation
from ...nn.attention import Attention
from ...nn.embedding import HINT_CHANNELS, batch_timesteps
from ..base import ModelMixin
from .blocks import Common, Conditions, DownBlock, MidBlock, UpBlock
from .conditioning import ConditioningMixin
from .layout import Layout, lay_out

HIDDEN = -10000.0


@dataclass
class UNet2DConditionOutput(BaseOutput):
    """Prediction of the UNet: `sample` (B, out_channels, H, W)."""

    sample: Tensor


class UNet2DConditionModel(ConditioningMixin, ModelMixin):
    """Predicts noise (or the sample, or velocity) from a noisy sample, a time and a context.

    The options are those of published configurations. `attention_head_dim` is the *number* of heads in transformer
    blocks (CrossAttn...) and the width of a head in the others, as those configurations have it.

    Raises:
        ConfigError: a block name or embedding type is unknown, lists have different lengths, or options contradict.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple, ...] = 1,
        reverse_transformer_layers_per_block: tuple[tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sample_size = sample_size
        self._check_config()
        first = block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels, first, conv_in_kernel, padding=(conv_in_kernel - 1) // 2)
        self._build_blocks(self.build_conditioning())
        self.conv_norm_out = self.conv_act = None
        if norm_num_groups is not None:
            self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
            self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(first, out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)

    def _check_config(self) -> None:
        config = self.config
        if config.num_attention_heads is not None:
            raise ConfigError(
                "num_attention_heads is not read by this model: published configurations give the number of heads "
                "as attention_head_dim; set attention_head_dim and leave num_attention_heads out"
            )
        if config.dual_cross_attention:
            raise ConfigError("dual_cross_attention=True is not supported; leave it False")
        if config.attention_type != "default":
            raise ConfigError(f"attention_type is {config.attention_type!r}; only 'default' is supported")

    def _layout(self) -> Layout:
        config = self.config
        mid_only = config.mid_block_only_cross_attention
        if mid_only is None:
            mid_only = config.only_cross_attention if isinstance(config.only_cross_attention, bool) else False
        mid = config.mid_block_type
        names = (
            "down_block_types", "mid_block_type", "up_block_types", "block_out_channels", "layers_per_block",
            "attention_head_dim", "cross_attention_dim", "transformer_layers_per_block",
            "reverse_transformer_layers_per_block", "only_cross_attention",
        )  # fmt: skip
        return lay_out(
            usable=lambda kind: not kind.skip,
            mid_only_cross_attention=mid_only,
            mid_layers=0 if mid == "UNetMidBlock2D" else 1,
            **{name: config[name] for name in names},
        )

    def _build_blocks(self, time_channels: int) -> None:
        config, layout = self.config, self._layout()
        common = Common(
            time_channels=time_channels,
            groups=config.norm_num_groups,
            attn_groups=config.norm_num_groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            act=config.act_fn,
            time_scale_shift=config.resnet_time_scale_shift,
            skip_time_act=config.resnet_skip_time_act,
            out_scale_factor=config.resnet_out_scale_factor,
            mid_scale_factor=config.mid_block_scale_factor,
            downsample_padding=config.downsample_padding,
            use_linear_projection=config.use_linear_projection,
            upcast_attention=config.upcast_attention,
            cross_attention_norm=config.cross_attention_norm,
        )
        self.down_blocks = nn.ModuleList(DownBlock(level, common) for level in layout.down)
        self.mid_block = None if layout.mid is None else MidBlock(layout.mid, common, attention=layout.mid.layers > 0)
        self.up_blocks = nn.ModuleList(UpBlock(level, common) for level in layout.up)
        self.num_upsamplers = sum(level.resample for level in layout.up)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict from a noisy sample (B, in_channels, H, W) at `timestep`.

        Args:
            timestep: a number, or a tensor of one or B values.
            encoder_hidden_states: context (B, tokens, width).
            class_labels: labels, noise levels or vectors, as `class_embed_type` says.
            timestep_cond: guidance embedding (B, time_cond_proj_dim).
            attention_mask: (B, positions), 1 = may be attended to.
            cross_attention_kwargs: further keywords for the attention processors.
            added_cond_kwargs: `text_embeds`, `time_ids`, `image_embeds`, `hint`, as `addition_embed_type` says.
            down_block_additional_residuals: added to the kept feature maps, one each (ControlNet).
            mid_block_additional_residual: added to the middle's features (ControlNet).
            down_intrablock_additional_residuals: added inside the blocks on the way down, one each (T2I adapter).
            encoder_attention_mask: (B, tokens), 1 = may be attended to; or already additive, (B, 1, tokens).

        Raises:
            InputError: a shape does not fit the configuration, or a needed input is missing.
        """
        self._check_sample(sample)
        emb, hint = self._embed(sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added_cond_kwargs)
        given = Conditions(
            emb,
            self._context(encoder_hidden_states, added_cond_kwargs, sample.shape[0]),
            additive_mask(attention_mask, sample.dtype),
            additive_mask(encoder_attention_mask, sample.dtype),
            self._processor_kwargs(cross_attention_kwargs),
        )
        if hint is not None:
            sample = torch.cat([sample, hint], dim=1)
        x = self.conv_in(2 * sample - 1.0 if self.config.center_input_sample else sample)
        x, kept = self._go_down(x, given, down_intrablock_additional_residuals)
        kept = add_residuals(kept, down_block_additional_residuals, mid_block_additional_residual)
        x = self._middle(x, given, down_intrablock_additional_residuals)
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual
        x = self._go_up(x, kept, given)
        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))
        x = self.conv_out(x)
        return UNet2DConditionOutput(sample=x) if return_dict else (x,)

    def _embed(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        context: Tensor | None,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        added: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the embedding for residual blocks (B, width) and channels to append to the sample."""
        timesteps = batch_timesteps(timestep, sample.shape[0], sample.device)
        emb = self.get_time_embed(timesteps, sample.dtype, timestep_cond)
        labels = self.get_class_embed(sample.dtype, class_labels)
        if labels is not None:
            emb = torch.cat([emb, labels], dim=-1) if self.config.class_embeddings_concat else emb + labels
        extra, hint = self.get_aug_embed(emb.dtype, context, added)
        if hint is not None and hint.shape[-2:] != sample.shape[-2:]:
            raise InputError(
                f"hint becomes {tuple(hint.shape[-2:])} positions and sample has {tuple(sample.shape[-2:])}; "
                "the hint picture needs eight times the sample's height and width"
            )
        emb = emb if extra is None else emb + extra
        return (emb if self.time_embed_act is None else self.time_embed_act(emb)), hint

    def _context(
        self, encoder_hidden_states: Tensor | None, added: dict[str, Tensor] | None, batch: int
    ) -> Tensor | None:
        context = self.process_encoder_hidden_states(encoder_hidden_states, added)
        width = self.config.cross_attention_dim
        if context is None:
            if any(block.attention == "transformer" for block in (*self.down_blocks, *self.up_blocks)):
                raise InputError("encoder_hidden_states is None, but this model has cross-attention")
        elif isinstance(width, int):
            self.check_width(context, width, "cross_attention_dim")
        if context is not None and context.shape[0] != batch:
            raise InputError(f"encoder_hidden_states has {context.shape[0]} rows for a batch of {batch} samples")
        return context

    def _processor_kwargs(self, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the keywords for processors, after checking that at least one processor reads each.

        `scale` is dropped: it belongs to adapters, which set it on their patch.
        """
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "scale"}
        if not kwargs:
            return None
        accepted = [m._accepts for m in self.modules() if isinstance(m, Attention)]
        unread = [k for k in kwargs if not any(a is None or k in a for a in accepted)]
        if unread:
            raise InputError(f"cross_attention_kwargs holds {unread}, which no attention processor accepts")
        return kwargs

    def _check_sample(self, sample: Tensor) -> None:
        channels = self.config.in_channels
        if self.config.addition_embed_type == "image_hint":
            channels -= HINT_CHANNELS
        if sample.dim() != 4 or sample.shape[1] != channels:
            raise InputError(
                f"sample has shape {tuple(sample.shape)}, but this model's in_channels asks for "
                f"(batch, {channels}, height, width)"
            )

    def _go_down(
        self, x: Tensor, given: Conditions, adapter: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept: tuple[Tensor, ...] = (x,)
        for i, block in enumerate(self.down_blocks):
            extra = adapter[i] if adapter is not None and i < len(adapter) else None
            x, more = block(x, given, extra if block.has_cross_attention else None)
            if extra is not None and not block.has_cross_attention:
                x = x + extra
                more = (*more[:-1], x)
            kept += more
        return x, kept

    def _middle(self, x: Tensor, given: Conditions, adapter: tuple[Tensor, ...] | None) -> Tensor:
        if self.mid_block is None:
            return x
        x = self.mid_block(x, given)
        used = len(self.down_blocks)
        if adapter is not None and len(adapter) > used and adapter[used].shape == x.shape:
            x = x + adapter[used]
        return x

    def _go_up(self, x: Tensor, kept: tuple[Tensor, ...], given: Conditions) -> Tensor:
        odd = any(size % 2**self.num_upsamplers for size in kept[0].shape[-2:])
        for block in self.up_blocks:
            count = len(block.resnets)
            here, kept = kept[-count:], kept[:-count]
            size = (kept[-1].shape[-2], kept[-1].shape[-1]) if odd and kept else None
            x = block(x, here, given, size)
        return x


def additive_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a keep-mask (B, L) of ones and zeros into one that is added to scores, (B, 1, L); others pass through."""
    if mask is None or mask.dim() != 2:
        return mask
    return ((1 - mask.to(dtype)) * HIDDEN)[:, None]


def add_residuals(kept: tuple[Tensor, ...], extra: tuple[Tensor, ...] | None, mid: Tensor | None) -> tuple[Tensor, ...]:
    """Add a ControlNet's residuals to the kept feature maps.

    Raises:
        InputError: their number differs, or the middle's residual is missing.
    """
    if extra is None:
        return kept
    if len(extra) != len(kept):
        raise InputError(f"down_block_additional_residuals has {len(extra)} entries, this model keeps {len(kept)} maps")
    if mid is None:
        raise InputError(
            "down_block_additional_residuals came without mid_block_additional_residual; residuals of a T2I adapter "
            "go to down_intrablock_additional_residuals"
        )
    return tuple(a + b for a, b in zip(kept, extra, strict=True))
