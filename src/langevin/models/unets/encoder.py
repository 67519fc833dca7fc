"""The first half of a conditional UNet: embeddings, the way down and the middle; a ControlNet is this half."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...nn.attention import Attention
from ...nn.embedding import HINT_CHANNELS, batch_timesteps
from ..base import check_maps
from .blocks import Common, DownBlock, Given, MidBlock
from .conditioning import ConditioningMixin
from .k_blocks import KDownBlock
from .layout import Layout, lay_out

HIDDEN = -10000.0
LISTS = (
    "down_block_types", "mid_block_type", "up_block_types", "block_out_channels", "layers_per_block",
    "attention_head_dim", "num_attention_heads", "cross_attention_dim", "transformer_layers_per_block",
    "reverse_transformer_layers_per_block", "only_cross_attention",
)  # fmt: skip
COMMON = (
    "norm_num_groups", "norm_eps", "dropout", "act_fn", "resnet_time_scale_shift", "resnet_skip_time_act",
    "resnet_out_scale_factor", "mid_block_scale_factor", "downsample_padding", "use_linear_projection",
    "upcast_attention", "cross_attention_norm",
)  # fmt: skip


class EncoderMixin(ConditioningMixin):
    """Builds and runs the first half of a conditional UNet; its modules sit on the model under published names."""

    modules: Callable[[], Iterator[nn.Module]]
    conv_in: nn.Conv2d
    down_blocks: nn.ModuleList
    mid_block: MidBlock | None

    def build_encoder(self) -> tuple[Layout, Common]:
        """Create `conv_in`, the embeddings, `down_blocks` and `mid_block`; return what a way up is built from."""
        options = self.options
        kernel, groups = options.conv_in_kernel, options.norm_num_groups
        self.conv_in = nn.Conv2d(options.in_channels, options.block_out_channels[0], kernel, padding=(kernel - 1) // 2)
        common = Common(self.build_conditioning(), groups, **{name: options[name] for name in COMMON})
        layout = self._layout()
        self.down_blocks = nn.ModuleList(
            (KDownBlock if level.kind.adaptive else DownBlock)(level, common) for level in layout.down
        )
        self.size_multiple = 2 ** sum(level.kind.adaptive and level.resample for level in layout.down)
        self.mid_block = None if layout.mid is None else MidBlock(layout.mid, common, attention=layout.mid.layers > 0)
        return layout, common

    def _layout(self) -> Layout:
        options = self.options
        mid_only = options.mid_block_only_cross_attention
        if mid_only is None:
            mid_only = options.only_cross_attention if isinstance(options.only_cross_attention, bool) else False
        return lay_out(
            usable=lambda kind: not kind.skip,
            mid_only_cross_attention=mid_only,
            mid_layers=0 if options.mid_block_type == "UNetMidBlock2D" else 1,
            **{name: options[name] for name in LISTS},
        )

    # -- one forward pass -------------------------------------------------------------------------------------------

    def prepare(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        *,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        attention_mask: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cross_attention_kwargs: dict[str, Any] | None,
        added_cond_kwargs: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Given]:
        """Check and embed what a forward pass receives; return the input of `conv_in` and what every block reads.

        Raises:
            InputError: a shape does not fit the configuration, or a needed input is missing.
        """
        self._check_sample(sample)
        kwargs = self._processor_kwargs(cross_attention_kwargs)
        pictures = self.picture_tokens(added_cond_kwargs, sample.shape[0])
        if pictures is not None:
            kwargs = {**(kwargs or {}), "ip_hidden_states": pictures}
        emb, hint = self._embed(sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added_cond_kwargs)
        given = Given(
            emb,
            self._context(encoder_hidden_states, added_cond_kwargs, sample.shape[0]),
            additive_mask(attention_mask, sample.dtype),
            additive_mask(encoder_attention_mask, sample.dtype),
            kwargs,
        )
        return (sample if hint is None else torch.cat([sample, hint], dim=1)), given

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
            emb = torch.cat([emb, labels], dim=-1) if self.class_embeddings_concat else emb + labels
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
            blocks = (*self.down_blocks, self.mid_block, *getattr(self, "up_blocks", ()))
            if any(block is not None and block.attention in ("transformer", "adaptive") for block in blocks):
                raise InputError("encoder_hidden_states is None, but this model has cross-attention")
        elif isinstance(width, int):
            self.check_width(context, width, "cross_attention_dim")
        if context is not None and context.shape[0] != batch:
            raise InputError(f"encoder_hidden_states has {context.shape[0]} rows for a batch of {batch} samples")
        return context

    def _processor_kwargs(self, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the keywords for processors, after checking that at least one processor reads each.

        `scale` is left out: it belongs to the adapters, which have it from `models.adapting.takes_adapter_scale`.
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
        check_maps("sample", sample, "in_channels", channels)
        multiple, (height, width) = self.size_multiple, sample.shape[-2:]
        if multiple > 1 and (height % multiple or width % multiple or min(height, width) < 2 * multiple):
            raise InputError(
                f"sample is {height}x{width}; this model needs multiples of {multiple}, at least {2 * multiple}: "
                "pad the sample, and cut the result"
            )

    def go_down(
        self, x: Tensor, given: Given, adapter: tuple[Tensor, ...] | None = None, maps: int | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the blocks on the way down; return the features and every kept feature map, the input first.

        `adapter` holds one map to add per block (T2I adapters, Mou et al. 2023). `maps` ends it after the first maps.
        """
        kept: tuple[Tensor, ...] = (x,)
        for i, block in enumerate(self.down_blocks):
            if maps is not None and len(kept) >= maps:
                break
            extra = adapter[i] if adapter is not None and i < len(adapter) else None
            part = {} if maps is None else {"maps": maps - len(kept)}
            x, more = block(x, given, extra if block.adds_inside else None, **part)
            if extra is not None and not block.adds_inside and len(more) == len(block.kept_channels):
                x = x + extra
                more = (*more[:-1], x)
            kept += more
        return x, kept

    def middle(self, x: Tensor, given: Given, adapter: tuple[Tensor, ...] | None = None) -> Tensor:
        """Run the middle block, if there is one; an adapter may have a map for it too."""
        if self.mid_block is None:
            return x
        x = self.mid_block(x, given)
        used = len(self.down_blocks)
        if adapter is not None and len(adapter) > used and adapter[used].shape == x.shape:
            x = x + adapter[used]
        return x


def additive_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a keep-mask (B, L) of ones and zeros into one that is added to scores, (B, 1, L); others pass through."""
    if mask is None or mask.dim() != 2:
        return mask
    return ((1 - mask.to(dtype)) * HIDDEN)[:, None]
