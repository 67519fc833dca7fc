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
    """Mixin over `encode_whole` and `decode_whole`: slices of one picture and tiles save memory.

    Attributes: use_slicing, use_tiling; tile_sample_min_size and tile_latent_min_size (side of a tile in pixels of the
    picture and of the latents), tile_overlap_factor (part of a tile that it shares with its neighbour), tile_ramp,
    tile_statistics, tile_storage. A class that can share the statistics of its norms between tiles adds "shared" to
    `known_statistics` and overrides `encode_strips` and `decode_strips`.
    """

    config: Any
    known_statistics: tuple[str, ...] = ("tile",)
    encode_whole: Callable[[Tensor], Tensor]
    decode_whole: Callable[[Tensor], Tensor]
    use_slicing = False
    use_tiling = False
    tile_ramp = "linear"
    tile_statistics = "tile"
    tile_storage: torch.device | str | None = None

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
        statistics: str | None = None,
        tile_sample_min_size: int | None = None,
        tile_overlap_factor: float | None = None,
        ramp: str | None = None,
        storage: torch.device | str | None = None,
    ) -> None:
        """Encode and decode what is larger than a tile part by part. None leaves a setting as it is.

        statistics: "shared" computes in strips whose norms share their statistics, which equals the whole up to
        rounding; "tile" computes overlapping tiles by themselves and blends them, in an amount of memory that does not
        grow with the picture, where colours may differ from tile to tile. The first is the default of autoencoders with
        norms, the second is all that others have.
        tile_sample_min_size: side of a tile in pixels of the picture; a strip has an eighth of a tile's pixels.
        tile_overlap_factor: shared part of a tile, in [0, 1). ramp: "linear" or "cosine", how one tile fades into the
        next. Both are for "tile" only.
        storage: device where strips wait for their turn, for example "cpu" with a network on an accelerator, which then
        holds a few strips at a time. For "shared" only.
        Raises InputError for a setting out of its range or without effect.
        """
        self._check_tiling(statistics or self.tile_statistics, tile_overlap_factor, ramp, storage)
        if tile_sample_min_size is not None:
            if tile_sample_min_size < self.spatial_scale_factor:
                raise InputError(f"tile_sample_min_size is {tile_sample_min_size}, below one latent pixel")
            self.set_tiles(tile_sample_min_size, factor=self.spatial_scale_factor, overlap=self.tile_overlap_factor)
        self.tile_statistics = statistics or self.tile_statistics
        self.tile_overlap_factor = self.tile_overlap_factor if tile_overlap_factor is None else tile_overlap_factor
        self.tile_ramp = ramp or self.tile_ramp
        self.tile_storage = self.tile_storage if storage is None else storage
        self.use_tiling = use_tiling

    def _check_tiling(
        self, statistics: str, overlap: float | None, ramp: str | None, storage: torch.device | str | None
    ) -> None:
        """Raise InputError for an option of tiles that is unknown, out of range or without effect."""
        check_choice("statistics", statistics, self.known_statistics)
        if overlap is not None and not 0 <= overlap < 1:
            raise InputError(f"tile_overlap_factor is {overlap}; it must be at least 0 and below 1")
        if ramp is not None:
            check_choice("ramp", ramp, RAMPS)
        other = "tile" if statistics == "shared" else "shared"
        idle = {"tile_overlap_factor": overlap, "ramp": ramp} if other == "tile" else {"storage": storage}
        for name, value in idle.items():
            if value is not None:
                raise InputError(f'{name} has no effect with statistics="{statistics}"; it belongs to "{other}"')

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
        """Return `encode_whole` of `x`, computed in strips or in blended tiles."""
        factor = self.spatial_scale_factor
        if self.tile_statistics == "shared":
            return self.encode_strips(x, factor * self.strip_rows(x.shape[-1] // factor))
        return run_tiled(
            self.encode_whole,
            x,
            tile=self.tile_latent_min_size * factor,
            stride=self.latent_stride() * factor,
            scale=Fraction(1, factor),
            ramp=self.tile_ramp,
        )

    def decode_tiles(self, z: Tensor) -> Tensor:
        """Return `decode_whole` of `z`, computed in strips or in blended tiles."""
        if self.tile_statistics == "shared":
            return self.decode_strips(z, self.strip_rows(z.shape[-1]))
        return run_tiled(
            self.decode_whole,
            z,
            tile=self.tile_latent_min_size,
            stride=self.latent_stride(),
            scale=self.spatial_scale_factor,
            ramp=self.tile_ramp,
        )

    def encode_strips(self, x: Tensor, rows: int) -> Tensor:
        """Return `encode_whole` of `x` up to rounding, computed in strips of `rows` rows of the picture."""
        raise NotImplementedError

    def decode_strips(self, z: Tensor, rows: int) -> Tensor:
        """Return `decode_whole` of `z` up to rounding, computed in strips of `rows` rows of the latents."""
        raise NotImplementedError

    def strip_rows(self, width: int) -> int:
        """Return the rows of a strip, in pixels of latents that are `width` wide: an eighth of a tile, at least 4."""
        return max(self.tile_latent_min_size**2 // (8 * max(width, 1)), 4)

    def latent_stride(self) -> int:
        """Return the distance between tiles in pixels of the latents."""
        return max(int(self.tile_latent_min_size * (1 - self.tile_overlap_factor)), 1)


def check_picture(what: str, x: Tensor, channels: int) -> None:
    """Raise InputError unless `x` is (B, channels, H, W)."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise InputError(f"a {what} batch of shape (B, {channels}, H, W) is expected, and {tuple(x.shape)} was given")
