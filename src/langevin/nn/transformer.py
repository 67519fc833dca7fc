"""Transformer blocks and the transformer that works on feature maps, named as in published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, check_choice, did_you_mean
from .attention import Attention
from .checkpointing import run_block

if TYPE_CHECKING:
    from .merging import Layer, TokenMerging


def gated_gelu(x: Tensor) -> Tensor:
    """Multiply the first half of the channels (last dimension) by the GELU of the second (Shazeer 2020)."""
    half = x.shape[-1] // 2
    return F.gelu(x[..., half:]) * x[..., :half]


FEED_FORWARDS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "geglu": (gated_gelu, 2),
    "gelu": (F.gelu, 1),
}
"""Documented name -> activation, and how many channels it takes for one that it returns."""


class Expansion(nn.Module):
    """The first half of a feed-forward network: a linear map `proj` and an activation, (B, L, dim) -> (B, L, inner)."""

    def __init__(self, dim: int, inner: int, *, activation_fn: str, bias: bool = True) -> None:
        super().__init__()
        if activation_fn not in FEED_FORWARDS:
            raise ConfigError(f"no feed-forward {activation_fn!r}{did_you_mean(activation_fn, FEED_FORWARDS)}")
        self.activate, taken = FEED_FORWARDS[activation_fn]
        self.proj = nn.Linear(dim, taken * inner, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activate(self.proj(hidden_states))


class FeedForward(nn.Module):
    """Position-wise network (B, L, dim) -> (B, L, dim_out): `net.0.proj`, activation, a dropout of 0, `net.2`."""

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        mult: float = 4,
        activation_fn: str = "geglu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        inner = int(dim * mult)
        first = Expansion(dim, inner, activation_fn=activation_fn, bias=bias)
        self.net = nn.ModuleList([first, nn.Dropout(0.0), nn.Linear(inner, dim_out or dim, bias=bias)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.net[0](hidden_states)
        if self.net[1].p > 0:
            hidden_states = self.net[1](hidden_states)
        return self.net[2](hidden_states)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a layer norm and with a residual.

    With `only_cross_attention` the first attention also reads the context. Without `cross_attention_dim` there is no
    second attention.

    Attributes:
        merging: how layers compute on fewer tokens, if they do.
        chunks: how many rows or tokens the feed-forward network takes at a time, and their dimension; None for all.
    """

    merging: TokenMerging | None = None
    chunks: tuple[int, int] | None = None

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        *,
        cross_attention_dim: int | None = None,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        common: dict[str, Any] = {
            "heads": num_attention_heads,
            "dim_head": attention_head_dim,
            "upcast_attention": upcast_attention,
        }
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, cross_attention_dim if only_cross_attention else None, **common)
        self.norm2 = self.attn2 = None
        if cross_attention_dim is not None:
            self.norm2 = nn.LayerNorm(dim)
            self.attn2 = Attention(dim, cross_attention_dim, **common)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the tokens (B, N, C); `size` is the height and width of their feature map, where it is known."""
        kwargs = cross_attention_kwargs or {}
        context = encoder_hidden_states if self.only_cross_attention else None
        fewer = plainly if self.merging is None or size is None else self.merging.around(hidden_states, size)
        attend = fewer("attention", lambda x: self.attn1(x, context, attention_mask, **kwargs))
        hidden_states = hidden_states + attend(self.norm1(hidden_states))
        if self.attn2 is not None:
            attn2, seen = self.attn2, (encoder_hidden_states, encoder_attention_mask)
            hidden_states = hidden_states + fewer("cross", lambda x: attn2(x, *seen, **kwargs))(
                self.norm2(hidden_states)
            )
        return hidden_states + fewer("feed_forward", self._feed)(self.norm3(hidden_states))

    def set_chunk_feed_forward(self, chunk_size: int | None, dim: int = 0) -> None:
        """Let the feed-forward network take `chunk_size` rows (dim 0) or tokens (dim 1) at a time, None for all."""
        check_choice("dim", dim, (0, 1))
        self.chunks = None if chunk_size is None else (chunk_size, dim)

    def _feed(self, x: Tensor) -> Tensor:
        if self.chunks is None:
            return self.ff(x)
        return torch.cat([self.ff(part) for part in x.split(*self.chunks)], self.chunks[1])


def plainly(name: str, layer: Layer) -> Layer:
    """Return the layer as it is."""
    return layer


class Transformer2D(nn.Module):
    """Transformer over the positions of a feature map (B, C, H, W), with a residual around it (Rombach et al. 2022).

    `proj_in` and `proj_out` are 1x1 convolutions, or linear layers with `use_linear_projection`. The output has the
    memory format of the input: the residual is the first operand of the sum.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        in_channels: int,
        *,
        num_layers: int = 1,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = None,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        inner = num_attention_heads * attention_head_dim
        self.in_channels = in_channels
        self.use_linear_projection = use_linear_projection
        self.norm = nn.GroupNorm(norm_num_groups, in_channels, eps=1e-6)
        self.proj_in = nn.Linear(in_channels, inner) if use_linear_projection else nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                num_attention_heads,
                attention_head_dim,
                cross_attention_dim=cross_attention_dim,
                only_cross_attention=only_cross_attention,
                upcast_attention=upcast_attention,
            )
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(inner, in_channels) if use_linear_projection else nn.Conv2d(inner, in_channels, 1)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        residual = hidden_states
        height, width = hidden_states.shape[-2:]
        tokens = self.norm(hidden_states)
        if self.use_linear_projection:
            tokens = self.proj_in(tokens.flatten(2).transpose(1, 2))
        else:
            tokens = self.proj_in(tokens).flatten(2).transpose(1, 2).contiguous()
        told: dict[str, Any] = {"cross_attention_kwargs": cross_attention_kwargs}
        for block in self.transformer_blocks:
            where = {} if block.merging is None else {"size": (height, width)}
            seen = (attention_mask, encoder_hidden_states, encoder_attention_mask)
            tokens = run_block(self, block, tokens, *seen, **told, **where)
        if self.use_linear_projection:
            return residual + self.proj_out(tokens).transpose(1, 2).unflatten(2, (height, width))
        return residual + self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))
