"""The KL autoencoder of latent diffusion models (Rombach et al. 2022; Kingma & Welling 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...core.config import register_to_config
from ...core.rng import Generators
from ...nn.compiled import vary
from ..base import ModelMixin
from .latent import SpatialAutoencoder
from .strips import decode_in_strips, encode_in_strips
from .vae import AutoencoderKLOutput, Decoder, DecoderOutput, DiagonalGaussianDistribution, Encoder


class AutoencoderKL(SpatialAutoencoder, ModelMixin):
    """Encodes pictures into a Gaussian over latents and decodes latents into pictures.

    Pictures are (B, in_channels, H, W) in [-1, 1]; latents (B, latent_channels, H/f, W/f), f = 2**(stages - 1), and are
    multiplied by `scaling_factor` outside of this class. `shift_factor`, `latents_mean`, `latents_std` and
    `force_upcast` are facts about the latents for the pipelines that use them. `sample_size` sets the side of a tile.
    Tiles share the statistics of the norms unless `enable_tiling(statistics="tile")` asks for separate ones.
    """

    known_statistics = ("shared", "tile")
    tile_statistics = "shared"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int | Sequence[int] = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups,
            "act_fn": act_fn,
            "mid_block_add_attention": mid_block_add_attention,
        }
        self.encoder = Encoder(in_channels, latent_channels, down_block_types=down_block_types, **shared)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types=up_block_types, **shared)
        self.quant_conv = pointwise(2 * latent_channels) if use_quant_conv else None
        self.post_quant_conv = pointwise(latent_channels) if use_post_quant_conv else None
        size = sample_size if isinstance(sample_size, int) else sample_size[0]
        self.set_tiles(size, factor=2 ** (len(block_out_channels) - 1), overlap=0.25)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Return the posterior over the latents of pictures `x` (B, in_channels, H, W) in [-1, 1].

        Raises InputError for another shape than the configuration's.
        """
        posterior = DiagonalGaussianDistribution(self.map_encoder(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Return the pictures (B, out_channels, H, W) of unscaled latents `z`; decoding draws nothing.

        Raises InputError for another shape than the configuration's.
        """
        sample = self.map_decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode `sample`, through one draw of the posterior with `generator` or through its mode."""
        posterior = DiagonalGaussianDistribution(self.map_encoder(sample))
        latents = posterior.sample(generator) if sample_posterior else posterior.mean
        return self.decode(latents, return_dict)

    def encode_whole(self, x: Tensor) -> Tensor:
        """Return mean and log variance (B, 2C, h, w) of `x`, without slices or tiles."""
        return self.quantised(self.encoder(x))

    def decode_whole(self, z: Tensor) -> Tensor:
        """Return the pictures of `z`, without slices or tiles."""
        z = self.unquantised(z)
        vary(self.decoder, z)
        return self.decoder(z)

    def encode_strips(self, x: Tensor, rows: int) -> Tensor:
        return self.quantised(encode_in_strips(self.encoder, x, rows, self.tile_storage))

    def decode_strips(self, z: Tensor, rows: int) -> Tensor:
        return decode_in_strips(self.decoder, self.unquantised(z), rows, self.tile_storage)

    def quantised(self, moments: Tensor) -> Tensor:
        """Return the encoder's output after the convolution that some checkpoints put behind it."""
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def unquantised(self, z: Tensor) -> Tensor:
        """Return latents after the convolution that some checkpoints put before the decoder."""
        return z if self.post_quant_conv is None else self.post_quant_conv(z)

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Encode in tiles or strips, whatever the size of `x`."""
        posterior = DiagonalGaussianDistribution(self.encode_tiles(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode in tiles or strips, whatever the size of `z`."""
        sample = self.decode_tiles(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)


def pointwise(channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution that keeps the number of channels."""
    return nn.Conv2d(channels, channels, 1)
