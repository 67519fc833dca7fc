"""Latent space: where the samples of a call live, and the way between it and pictures (Rombach et al. 2022)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError, NonFiniteError
from ..core.rng import Generators, normal
from ..nn.compiled import vary
from .common import dtype_of, option, sample_of


def scale_factor(vae: Any) -> int:
    """Return how many pixels a latent spans per side, 8 without an autoencoder."""
    stages = option(vae, "block_out_channels") if vae is not None else None
    return 2 ** (len(stages) - 1) if stages else 8


def default_size(unet: Any, vae: Any) -> tuple[int, int]:
    """Return the height and width in pixels that the model was trained for.

    Raises:
        InputError: when neither network says.
    """
    for module, factor in ((unet, scale_factor(vae)), (vae, 1)):
        size = option(module, "sample_size") if module is not None else None
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            return height * factor, width * factor
    raise InputError("The networks do not name their size; pass `height` and `width`.")


@dataclass(frozen=True)
class LatentSpace:
    """Where the latents of one call live.

    Attributes:
        vae: the autoencoder, or None when nothing will be encoded or decoded.
        channels: channels of a latent.
        height, width: of the picture in pixels, multiples of `scale_factor`.
        visible: height and width of the picture without the margin that makes its size fit, at the top left; None for
            all of it.
        scaling: scale of the latents in place of the autoencoder's own.
        upcast: encode and decode in float32 when the weights are float16, for autoencoders that overflow there; those
            with force_upcast=False in their configuration do not.
    """

    vae: Any
    channels: int
    height: int
    width: int
    visible: tuple[int, int] | None = None
    scaling: float | None = None
    upcast: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        factor = scale_factor(self.vae)
        return self.height // factor, self.width // factor

    def shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of the latents of `images` pictures."""
        return images, self.channels, *self.size

    def noise(self, images: int, *, rng: Generators, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Draw the starting noise of `images` pictures."""
        return normal(self.shape(images), generator=rng, device=device, dtype=dtype)

    def encode(self, pixels: Tensor, images: int, *, rng: Generators, mode: bool = False) -> Tensor:
        """Return latents (images, ...) for pictures (rows, channels, height, width) in [-1, 1], in the pictures' type.

        Each picture is encoded once and serves `images / rows` rows, one after the other. One stream draws once per
        picture, a list of streams once per row; nothing is drawn when the autoencoder is deterministic.

        Args:
            mode: take the most likely latents, unscaled, as networks that see a picture beside the sample were trained.

        Raises:
            NonFiniteError: when the autoencoder returns NaN or infinity.
        """
        vae = self._autoencoder()
        shown = pixels.to(dtype_of(vae, pixels.dtype))
        vary(vae.encode, shown)
        encoded = vae.encode(shown)
        spread = getattr(encoded, "latent_dist", None)
        if spread is None:
            latents = getattr(encoded, "latents", None)
            latents = encoded[0] if latents is None else latents
        elif mode:
            latents = spread.mode()
        else:
            if isinstance(rng, list):
                spread = type(spread)(spread_rows(spread.parameters, images))
            latents = spread.sample(rng)
        self._check(latents)
        return spread_rows((latents if mode else self.scale(latents)).to(pixels.dtype), images)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures (batch, channels, height, width) in [-1, 1] of latents.

        Raises:
            NonFiniteError: instead of a black picture.
        """
        latents = self.unscale(latents)
        vae = self._autoencoder()
        latents = latents.to(dtype_of(vae, latents.dtype))
        vary(vae.decode, latents)
        pictures = sample_of(vae.decode(latents))
        self._check(pictures)
        return pictures if self.visible is None else pictures[..., : self.visible[0], : self.visible[1]]

    def scale(self, latents: Tensor) -> Tensor:
        """Return an autoencoder's latents as the network sees them, with about unit variance."""
        factor, mean, std = self._statistics(latents)
        return latents * factor if mean is None else (latents - mean) * factor / std

    def unscale(self, latents: Tensor) -> Tensor:
        """Return latents as the autoencoder decodes them: the inverse of `scale`."""
        factor, mean, std = self._statistics(latents)
        return latents / factor if mean is None else latents * std / factor + mean

    def _autoencoder(self) -> Any:
        """Return the autoencoder, or a float32 copy of it; the component itself belongs to every thread."""
        overflows = self.upcast and option(self.vae, "force_upcast", True)
        if not overflows or dtype_of(self.vae, torch.float32) != torch.float16:
            return self.vae
        fresh = copy.deepcopy(self.vae).float()
        for name in ("encode", "decode"):
            # A function that was set on the instance, such as a compiled one, would run the float16 weights.
            if hasattr(type(fresh), name):
                fresh.__dict__.pop(name, None)
        return fresh

    def _statistics(self, latents: Tensor) -> tuple[float, Any, Any]:
        """Return the scale, and the mean and deviation per channel that the configuration may name, else None."""
        factor = option(self.vae, "scaling_factor", 0.18215) if self.scaling is None else self.scaling
        found = (option(self.vae, "latents_mean"), option(self.vae, "latents_std"))
        if None in found:
            return factor, None, None
        mean, std = (torch.tensor(v, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1) for v in found)
        return factor, mean, std

    def _check(self, result: Tensor) -> None:
        if not torch.isfinite(result).all():
            raise NonFiniteError(
                f"The vae returned NaN or infinity in {result.dtype}; load it in float32 or bfloat16, or check it.",
                module="vae",
            )


def spread_rows(rows: Tensor, count: int) -> Tensor:
    """Return `count` rows, each given one as often as the others, one after the other.

    Raises:
        InputError: when the number of rows does not divide `count`.
    """
    if count % len(rows):
        raise InputError(f"{len(rows)} pictures were given for {count} results; pass one picture, or one per prompt.")
    return rows if len(rows) == count else rows.repeat_interleave(count // len(rows), dim=0)
