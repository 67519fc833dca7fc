"""Projections of picture embeddings to context tokens, as IP-Adapters have them (Ye et al. 2023, 2308.06721).

`ImageProjection` in `nn.embedding` is the plain one. Parameters carry the documented names; what published files call
them stands in `weights.dialects.ip_adapter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from .attention import Attention
from .transformer import FeedForward


class IPAdapterFullImageProjection(nn.Module):
    """Every token of a picture encoder (B, L, image_embed_dim) -> a context token, (B, L, cross_attention_dim)."""

    def __init__(self, image_embed_dim: int = 1024, cross_attention_dim: int = 1024) -> None:
        super().__init__()
        self.ff = FeedForward(image_embed_dim, cross_attention_dim, mult=1, activation_fn="gelu")
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.norm(self.ff(image_embeds))


class IPAdapterFaceIDImageProjection(nn.Module):
    """The embedding of a face (B, image_embed_dim) -> context tokens (B, num_tokens, cross_attention_dim)."""

    def __init__(
        self, image_embed_dim: int = 1024, cross_attention_dim: int = 1024, mult: int = 1, num_tokens: int = 1
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.ff = FeedForward(image_embed_dim, cross_attention_dim * num_tokens, mult=mult, activation_fn="gelu")
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.norm(self.ff(image_embeds).unflatten(-1, (self.num_tokens, -1)))


class IPAdapterPlusImageProjectionBlock(nn.Module):
    """One layer of a resampler: queries attend to the picture's tokens and to each other (Alayrac et al. 2022)."""

    def __init__(self, embed_dims: int = 768, dim_head: int = 64, heads: int = 16, ffn_ratio: float = 4) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(embed_dims)
        self.ln1 = nn.LayerNorm(embed_dims)
        self.attn = Attention(embed_dims, embed_dims, heads=heads, dim_head=dim_head, out_bias=False)
        feed = FeedForward(embed_dims, activation_fn="gelu", mult=ffn_ratio, bias=False)
        self.ff = nn.Sequential(nn.LayerNorm(embed_dims), feed)

    def forward(self, x: Tensor, latents: Tensor, residual: Tensor) -> Tensor:
        queries = self.ln1(latents)
        latents = self.attn(queries, torch.cat([self.ln0(x), queries], dim=-2)) + residual
        return self.ff(latents) + latents


class IPAdapterPlusImageProjection(nn.Module):
    """A resampler: all tokens of a picture (B, L, embed_dims) -> num_queries context tokens of width output_dims."""

    def __init__(
        self,
        embed_dims: int = 768,
        output_dims: int = 1024,
        hidden_dims: int = 1280,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 16,
        num_queries: int = 8,
        ffn_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, hidden_dims) * hidden_dims**-0.5)
        self.proj_in = nn.Linear(embed_dims, hidden_dims)
        self.proj_out = nn.Linear(hidden_dims, output_dims)
        self.norm_out = nn.LayerNorm(output_dims)
        self.layers = resampler_layers(hidden_dims, depth, dim_head, heads, ffn_ratio)

    def forward(self, x: Tensor) -> Tensor:
        latents, x = self.latents.expand(len(x), -1, -1), self.proj_in(x)
        for block in self.layers:
            latents = block(x, latents, latents)
        return self.norm_out(self.proj_out(latents))


class IPAdapterFaceIDPlusImageProjection(nn.Module):
    """The embedding of a face (B, id_embeddings_dim) -> num_tokens tokens that look at the picture's CLIP tokens.

    Attributes:
        clip_embeds: (rows, pictures, L, hidden_dims), what `prepare_ip_adapter_image_embeds` makes of the faces; one
            row serves the whole batch.
        shortcut: add the face's own tokens to the result, as version 2 was trained.
        shortcut_scale: weight of the result beside them.
    """

    def __init__(
        self,
        embed_dims: int = 768,
        output_dims: int = 768,
        hidden_dims: int = 1280,
        id_embeddings_dim: int = 512,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 16,
        num_tokens: int = 4,
        num_queries: int = 8,
        ffn_ratio: float = 4,
        ffproj_ratio: int = 2,
    ) -> None:
        super().__init__()
        self.num_tokens, self.embed_dim = num_tokens, embed_dims
        self.clip_embeds: Tensor | None = None
        self.shortcut, self.shortcut_scale = False, 1.0
        self.proj = FeedForward(id_embeddings_dim, embed_dims * num_tokens, mult=ffproj_ratio, activation_fn="gelu")
        self.norm = nn.LayerNorm(embed_dims)
        self.proj_in = nn.Linear(hidden_dims, embed_dims)
        self.proj_out = nn.Linear(embed_dims, output_dims)
        self.norm_out = nn.LayerNorm(output_dims)
        self.layers = resampler_layers(embed_dims, depth, dim_head, heads, ffn_ratio)

    def forward(self, id_embeds: Tensor) -> Tensor:
        faces = self.norm(self.proj(id_embeds).unflatten(-1, (self.num_tokens, -1)))
        x, latents = self.proj_in(self.seen(id_embeds)), faces
        for block in self.layers:
            latents = block(x, latents, latents)
        latents = self.norm_out(self.proj_out(latents))
        return faces + self.shortcut_scale * latents if self.shortcut else latents

    def seen(self, id_embeds: Tensor) -> Tensor:
        """Return the CLIP tokens of the faces, one row per face.

        Raises:
            InputError: when `clip_embeds` is not set, or has another number of rows.
        """
        if self.clip_embeds is None:
            raise InputError(
                "This FaceID-Plus adapter also looks at the picture: set "
                "`unet.encoder_hid_proj.image_projection_layers[i].clip_embeds` to what "
                "`prepare_ip_adapter_image_embeds` returns for it."
            )
        rows, faces = self.clip_embeds.to(id_embeds).flatten(0, 1), len(id_embeds)
        if len(self.clip_embeds) == 1 and faces % len(rows) == 0:
            return rows.repeat(faces // len(rows), 1, 1)
        if len(rows) != faces:
            raise InputError(
                f"`clip_embeds` has {len(rows)} pictures for {faces} face embeddings; prepare it for as many pictures "
                "per prompt, and with or without guidance, as the call."
            )
        return rows


class MultiIPAdapterImageProjection(nn.Module):
    """The projections of several adapters: a list of embeddings -> a list of tokens, one entry per adapter.

    An entry (B, pictures, ...) gives (B, pictures, tokens, width).
    """

    def __init__(self, IPAdapterImageProjectionLayers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.image_projection_layers = nn.ModuleList(IPAdapterImageProjectionLayers)

    @property
    def num_ip_adapters(self) -> int:
        """Number of adapters."""
        return len(self.image_projection_layers)

    def forward(self, image_embeds: Sequence[Tensor] | Tensor) -> list[Tensor]:
        many = [image_embeds[:, None]] if isinstance(image_embeds, Tensor) else image_embeds
        if len(many) != self.num_ip_adapters:
            raise InputError(f"image_embeds has {len(many)} entries for {self.num_ip_adapters} IP-Adapters")
        return [
            project(embeds.flatten(0, 1)).unflatten(0, embeds.shape[:2])
            for project, embeds in zip(self.image_projection_layers, many, strict=True)
        ]


def resampler_layers(width: int, depth: int, dim_head: int, heads: int, ffn_ratio: float) -> nn.ModuleList:
    """Return the layers of a resampler."""
    options: dict[str, Any] = {"dim_head": dim_head, "heads": heads, "ffn_ratio": ffn_ratio}
    return nn.ModuleList(IPAdapterPlusImageProjectionBlock(width, **options) for _ in range(depth))
