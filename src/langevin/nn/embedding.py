"""Embeddings of time, labels, sizes, pooled text and images, named as in published checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from .activation import activation
from .backends import attend

HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)
HINT_CHANNELS = 4
MAX_PERIOD = 10000.0


def sinusoidal(
    positions: Tensor,
    channels: int,
    *,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """Return sines and cosines of positions (B,) at geometrically spaced frequencies, (B, channels) in fp32.

    Sines come first unless `flip_sin_to_cos`. Source: Vaswani et al. 2017, section 3.5; Ho et al. 2020.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=positions.device)
    frequencies = torch.exp(index * -math.log(MAX_PERIOD) / (half - downscale_freq_shift))
    angles = positions[:, None].float() * frequencies * scale
    parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    if channels % 2:
        parts.append(torch.zeros_like(angles[:, :1]))
    return torch.cat(parts, dim=-1)


def batch_timesteps(timestep: Tensor | float, batch: int, device: torch.device) -> Tensor:
    """Return one timestep per sample, (batch,), from a number or a tensor with one or `batch` values.

    Raises:
        InputError: the tensor has another number of values.
    """
    if not isinstance(timestep, Tensor):
        dtype = torch.float32 if isinstance(timestep, float) else torch.int64
        return torch.full((batch,), timestep, dtype=dtype, device=device)
    if timestep.numel() not in (1, batch):
        raise InputError(f"timestep has {timestep.numel()} values for a batch of {batch}; give one, or one per sample")
    return timestep.reshape(-1).to(device).expand(batch)


class Timesteps(nn.Module):
    """Sinusoidal embedding of timesteps: (B,) -> (B, num_channels) in fp32."""

    def __init__(self, num_channels: int, flip_sin_to_cos: bool, downscale_freq_shift: float) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.flip_sin_to_cos, self.downscale_freq_shift = flip_sin_to_cos, downscale_freq_shift

    def forward(self, timesteps: Tensor) -> Tensor:
        order = {"flip_sin_to_cos": self.flip_sin_to_cos, "downscale_freq_shift": self.downscale_freq_shift}
        return sinusoidal(timesteps, self.num_channels, **order)


class GaussianFourierProjection(nn.Module):
    """Sines and cosines at fixed random frequencies: (B,) -> (B, 2 * embedding_size) (Tancik et al. 2020).

    With `log` the logarithm of the noise level is embedded, as in Song et al. 2021.
    """

    def __init__(
        self, embedding_size: int = 256, *, scale: float = 1.0, log: bool = True, flip_sin_to_cos: bool = False
    ) -> None:
        super().__init__()
        self.log, self.flip_sin_to_cos = log, flip_sin_to_cos
        self.weight = nn.Parameter(scale * torch.randn(embedding_size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        level = torch.log(x) if self.log else x
        angles = 2 * math.pi * torch.outer(level, self.weight)
        parts = [angles.cos(), angles.sin()] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
        return torch.cat(parts, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two-layer perceptron on an embedded timestep: (B, in_channels) -> (B, time_embed_dim).

    `condition` (B, cond_proj_dim) is projected without bias and added first (guidance-scale embedding,
    Meng et al. 2023).
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        *,
        act_fn: str = "silu",
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.cond_proj = nn.Linear(cond_proj_dim, in_channels, bias=False) if cond_proj_dim else None
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)
        self.post_act = activation(post_act_fn) if post_act_fn else None

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            sample = sample + self.cond_proj(condition)
        sample = self.linear_2(self.act(self.linear_1(sample)))
        return sample if self.post_act is None else self.post_act(sample)


class AttentionPooling(nn.Module):
    """Pool tokens (B, L, C) into (B, C): their mean, offset by a learned vector, attends to itself and to them.

    Source: Radford et al. 2021, section 2.4.
    """

    def __init__(self, num_heads: int, embed_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(3))
        self.positional_embedding = nn.Parameter(embed_dim**-0.5 * torch.randn(1, embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        query = x.mean(dim=1) + self.positional_embedding.to(x.dtype)
        tokens = torch.cat([query[:, None], x], dim=1)
        projected = (self.q_proj(query)[:, None], self.k_proj(tokens), self.v_proj(tokens))
        heads = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected)
        return attend(*heads).flatten(1)


class TextTimeEmbedding(nn.Module):
    """Text tokens (B, L, encoder_dim) -> a vector to add to the time embedding, (B, time_embed_dim)."""

    def __init__(self, encoder_dim: int, time_embed_dim: int, num_heads: int = 64) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(encoder_dim)
        self.pool = AttentionPooling(num_heads, encoder_dim)
        self.proj = nn.Linear(encoder_dim, time_embed_dim)
        self.norm2 = nn.LayerNorm(time_embed_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(hidden_states))))


class TextImageTimeEmbedding(nn.Module):
    """Pooled text (B, text_embed_dim) and image (B, image_embed_dim) vectors -> (B, time_embed_dim)."""

    def __init__(self, text_embed_dim: int = 768, image_embed_dim: int = 768, time_embed_dim: int = 1536) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_embed_dim, time_embed_dim)
        self.text_norm = nn.LayerNorm(time_embed_dim)
        self.image_proj = nn.Linear(image_embed_dim, time_embed_dim)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        return self.image_proj(image_embeds) + self.text_norm(self.text_proj(text_embeds))


class ImageTimeEmbedding(nn.Module):
    """A pooled image vector (B, image_embed_dim) -> (B, time_embed_dim)."""

    def __init__(self, image_embed_dim: int = 768, time_embed_dim: int = 1536) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_embed_dim, time_embed_dim)
        self.image_norm = nn.LayerNorm(time_embed_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(image_embeds))


class ImageHintTimeEmbedding(ImageTimeEmbedding):
    """`ImageTimeEmbedding` that also turns a hint picture (B, 3, 8H, 8W) into channels for the sample, (B, 4, H, W)."""

    def __init__(self, image_embed_dim: int = 768, time_embed_dim: int = 1536) -> None:
        super().__init__(image_embed_dim, time_embed_dim)
        layers: list[nn.Module] = []
        previous = 3
        for i, width in enumerate(HINT_WIDTHS):
            stride = 2 if i in (2, 4, 6) else 1
            layers += [nn.Conv2d(previous, width, 3, stride=stride, padding=1), nn.SiLU()]
            previous = width
        self.input_hint_block = nn.Sequential(*layers, nn.Conv2d(previous, HINT_CHANNELS, 3, padding=1))

    def forward(self, image_embeds: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(image_embeds), self.input_hint_block(hint)


class TextImageProjection(nn.Module):
    """Text tokens and one image vector -> context tokens: `num_image_text_embeds` for the image, then the text's."""

    def __init__(
        self,
        text_embed_dim: int = 1024,
        image_embed_dim: int = 768,
        cross_attention_dim: int = 768,
        num_image_text_embeds: int = 10,
    ) -> None:
        super().__init__()
        self.num_image_text_embeds = num_image_text_embeds
        self.image_embeds = nn.Linear(image_embed_dim, num_image_text_embeds * cross_attention_dim)
        self.text_proj = nn.Linear(text_embed_dim, cross_attention_dim)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        image = self.image_embeds(image_embeds).unflatten(-1, (self.num_image_text_embeds, -1))
        return torch.cat([image, self.text_proj(text_embeds)], dim=1)


class ImageProjection(nn.Module):
    """One image vector (B, image_embed_dim) -> context tokens (B, num_image_text_embeds, cross_attention_dim)."""

    def __init__(
        self, image_embed_dim: int = 768, cross_attention_dim: int = 768, num_image_text_embeds: int = 32
    ) -> None:
        super().__init__()
        self.num_image_text_embeds = num_image_text_embeds
        self.image_embeds = nn.Linear(image_embed_dim, num_image_text_embeds * cross_attention_dim)
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.norm(self.image_embeds(image_embeds).unflatten(-1, (self.num_image_text_embeds, -1)))
