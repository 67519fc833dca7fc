"""What autoencoders with a spatial latent share: one picture at a time, tiles, and checks of their input."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError, check_choice
from ...nn.tiling import RAMPS, run_tiled


class SpatialAutoencoder:
    """Mixin over `encode_whole` and `decode_whole`: slices of one picture and blended tiles save memory.

    Attributes: use_slicing, use_tiling; tile_sample_min_size and tile_latent_min_size (side of a tile in pixels of the
    picture and of the latents), tile_overlap_factor (part of a tile that it shares with its neighbour), tile_ramp.
    """

    config: Any
    encode_whole: Callable[[Tensor], Tensor]
    decode_whole: Callable[[Tensor], Tensor]
    use_slicing = False
    use_tiling = False
    tile_ramp = "linear"

    def set_tiles(self, size: int, *, factor: int, overlap: float) -> None:
        """Set the side of a tile in pixels of the picture, the ratio of picture to latents, and the shared part."""
        self.spatial_scale_factor = factor
        self.tile_sample_min_size = size
        self.tile_latent_min_size = int(size / factor)
        self.tile_overlap_factor = overlap

    def enable_slicing(self) -> None:
        """Encode and decode one picture of a batch at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode whole batches."""
        self.use_slicing = False

    def enable_tiling(
        self,
        use_tiling: bool = True,
        *,
        tile_sample_min_size: int | None = None,
        tile_overlap_factor: float | None = None,
        ramp: str | None = None,
    ) -> None:
        """Encode and decode what is larger than a tile in overlapping tiles.

        tile_sample_min_size: side of a tile in pixels of the picture. tile_overlap_factor: shared part of a tile, in
        [0, 1). ramp: "linear" or "cosine", how one tile fades into the next. None leaves a setting as it is.
        Tiles see less of the picture than the whole network does, so colours may differ slightly.
        """
        if tile_sample_min_size is not None:
            if tile_sample_min_size < self.spatial_scale_factor:
                raise InputError(f"tile_sample_min_size is {tile_sample_min_size}, below one latent pixel")
            self.set_tiles(tile_sample_min_size, factor=self.spatial_scale_factor, overlap=self.tile_overlap_factor)
        if tile_overlap_factor is not None:
            if not 0 <= tile_overlap_factor < 1:
                raise InputError(f"tile_overlap_factor is {tile_overlap_factor}; it must be at least 0 and below 1")
            self.tile_overlap_factor = tile_overlap_factor
        if ramp is not None:
            check_choice("ramp", ramp, RAMPS)
            self.tile_ramp = ramp
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Encode and decode whole pictures."""
        self.use_tiling = False

    def map_encoder(self, x: Tensor) -> Tensor:
        """Apply `encode_whole` to `x` (B, in_channels, H, W), in slices or tiles where that is switched on."""
        check_picture("picture", x, self.config.in_channels)
        tiled = self.use_tiling and max(x.shape[-2:]) > self.tile_sample_min_size
        return self.map_slices(self.encode_tiles if tiled else self.encode_whole, x)

    def map_decoder(self, z: Tensor) -> Tensor:
        """Apply `decode_whole` to `z` (B, latent_channels, h, w), in slices or tiles where that is switched on."""
        check_picture("latent", z, self.config.latent_channels)
        tiled = self.use_tiling and max(z.shape[-2:]) > self.tile_latent_min_size
        return self.map_slices(self.decode_tiles if tiled else self.decode_whole, z)

    def map_slices(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Apply `function` to a batch, one row at a time where slicing is switched on."""
        if self.use_slicing and batch.shape[0] > 1:
            return torch.cat([function(row) for row in batch.split(1)])
        return function(batch)

    def encode_tiles(self, x: Tensor) -> Tensor:
        """Apply `encode_whole` to overlapping tiles of `x`."""
        factor = self.spatial_scale_factor
        return run_tiled(
            self.encode_whole,
            x,
            tile=self.tile_latent_min_size * factor,
            stride=self.latent_stride() * factor,
            scale=Fraction(1, factor),
            ramp=self.tile_ramp,
        )

    def decode_tiles(self, z: Tensor) -> Tensor:
        """Apply `decode_whole` to overlapping tiles of `z`."""
        return run_tiled(
            self.decode_whole,
            z,
            tile=self.tile_latent_min_size,
            stride=self.latent_stride(),
            scale=self.spatial_scale_factor,
            ramp=self.tile_ramp,
        )

    def latent_stride(self) -> int:
        """Return the distance between tiles in pixels of the latents."""
        return max(int(self.tile_latent_min_size * (1 - self.tile_overlap_factor)), 1)


def check_picture(what: str, x: Tensor, channels: int) -> None:
    """Raise InputError unless `x` is (B, channels, H, W)."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise InputError(f"a {what} batch of shape (B, {channels}, H, W) is expected, and {tuple(x.shape)} was given")
