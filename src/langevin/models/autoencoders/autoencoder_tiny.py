"""The tiny autoencoder of TAESD: a small convolutional stand-in for a latent diffusion model's own autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import register_to_config
from ...core.errors import ConfigError, check_choice
from ...core.outputs import BaseOutput
from ...core.rng import Generators
from ...nn.activation import activation
from ...nn.checkpointing import run_block
from ...nn.compiled import vary
from ..base import ModelMixin
from .latent import SpatialAutoencoder
from .vae import DecoderOutput

UPSAMPLING = ("nearest", "bilinear", "bicubic", "nearest-exact")


@dataclass
class AutoencoderTinyOutput(BaseOutput):
    """The `latents` (B, latent_channels, h, w) of an encoded batch, in the scale of the diffusion model."""

    latents: Tensor


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with activations between, added to their input, and ReLU, whatever the activation."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, channels, 3, padding=1)]
        for _ in range(2):
            layers += [activation(act), nn.Conv2d(channels, channels, 3, padding=1)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


def tiny_blocks(count: int, channels: int, act: str) -> list[nn.Module]:
    """Return the residual blocks of one stage."""
    return [TinyBlock(channels, act) for _ in range(count)]


class TinyEncoder(nn.Module):
    """Pictures (B, in_channels, H, W) in [-1, 1] to latents (B, out_channels, H/f, W/f), f = 2**(stages - 1)."""

    gradient_checkpointing = False

    def __init__(
        self, in_channels: int, out_channels: int, *, blocks: Sequence[int], widths: Sequence[int], act: str
    ) -> None:
        super().__init__()
        entries = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        entries += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False) for before, width in pairwise(widths)]
        stages = zip(entries, blocks, widths, strict=True)
        layers = [layer for entry, count, width in stages for layer in (entry, *tiny_blocks(count, width, act))]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return run_block(self, self.layers, (x + 1) / 2)


class TinyDecoder(nn.Module):
    """Latents (B, in_channels, h, w) to pictures (B, out_channels, f*h, f*w) in [-1, 1].

    Latents are first squeezed into [-3, 3] by 3 tanh(z / 3).
    """

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        blocks: Sequence[int],
        widths: Sequence[int],
        act: str,
        factor: int,
        mode: str,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1), activation(act)]
        layers += tiny_blocks(blocks[0], widths[0], act)
        for count, (before, width) in zip(blocks[1:], pairwise(widths), strict=True):
            grow = nn.Upsample(scale_factor=factor, mode=mode)
            layers += [grow, nn.Conv2d(before, width, 3, padding=1, bias=False), *tiny_blocks(count, width, act)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        return 2 * run_block(self, self.layers, 3 * torch.tanh(z / 3)) - 1


class AutoencoderTiny(SpatialAutoencoder, ModelMixin):
    """TAESD (Boer Bohan 2023): encodes to and decodes from the scaled latents of a diffusion model in milliseconds.

    Pictures are (B, in_channels, H, W) in [-1, 1]. `latent_magnitude` and `latent_shift` map latents to [0, 1] and back
    in `scale_latents` and `unscale_latents`. Decoding in tiles equals decoding whole wherever the overlap is wider than
    the reach of the convolutions. Raises ConfigError when numbers of blocks and widths differ in length.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        decoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        num_decoder_blocks: Sequence[int] = (3, 3, 3, 1),
        latent_magnitude: int = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("upsample_fn", upsample_fn, UPSAMPLING)
        for side, blocks, widths in (
            ("encoder", num_encoder_blocks, encoder_block_out_channels),
            ("decoder", num_decoder_blocks, decoder_block_out_channels),
        ):
            if len(blocks) != len(widths):
                raise ConfigError(f"num_{side}_blocks has {len(blocks)} items, {side}_block_out_channels {len(widths)}")
        self.encoder = TinyEncoder(
            in_channels, latent_channels, blocks=num_encoder_blocks, widths=encoder_block_out_channels, act=act_fn
        )
        self.decoder = TinyDecoder(
            latent_channels,
            out_channels,
            blocks=num_decoder_blocks,
            widths=decoder_block_out_channels,
            act=act_fn,
            factor=upsampling_scaling_factor,
            mode=upsample_fn,
        )
        self.latent_magnitude = latent_magnitude
        self.latent_shift = latent_shift
        self.scaling_factor = scaling_factor
        # Pipelines read the number of stages from this key, which the constructor does not take.
        self.register_to_config(block_out_channels=decoder_block_out_channels)
        self.set_tiles(512, factor=2 ** (len(num_encoder_blocks) - 1), overlap=0.125)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Build the model that `config` describes; see ConfigMixin.from_config. `block_out_channels` is derived."""
        if isinstance(config, Mapping):
            config = {key: value for key, value in config.items() if key != "block_out_channels"}
        return super().from_config(config, return_unused_kwargs, **overrides)

    def scale_latents(self, x: Tensor) -> Tensor:
        """Map latents to [0, 1], clamping what lies outside of +-latent_magnitude."""
        return torch.clamp(x / (2 * self.latent_magnitude) + self.latent_shift, 0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """Map [0, 1] back to latents."""
        return (x - self.latent_shift) * (2 * self.latent_magnitude)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Return the latents of pictures `x`. Raises InputError for another shape than the configuration's."""
        latents = self.map_encoder(x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self, x: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Return the pictures of latents `x`; decoding draws nothing. Raises InputError as `encode` does."""
        sample = self.map_decoder(x)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encode `sample`, round the scaled latents to eight bits as if stored in a picture, and decode them."""
        levels = torch.round(255 * self.scale_latents(self.map_encoder(sample))).float()
        return self.decode(self.unscale_latents(levels / 255).to(sample.dtype), return_dict=return_dict)

    def encode_whole(self, x: Tensor) -> Tensor:
        """Return the latents of `x`, without slices or tiles."""
        return self.encoder(x)

    def decode_whole(self, z: Tensor) -> Tensor:
        """Return the pictures of `z`, without slices or tiles."""
        vary(self.decoder, z)
        return self.decoder(z)
