"""A caller's picture on its way into a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.errors import InputError
from ..core.images import ImageInput, decode
from ..families.latents import LatentSpace, spread_rows
from .image_processor import VaeImageProcessor, is_latents
from .inputs import Call
from .regions import Box, pad_to_multiple


@dataclass(frozen=True)
class Picture:
    """A picture as pixels (rows, 3, height, width) in [-1, 1], or as latents (rows, channels, height, width).

    Attributes:
        values: the pixels or latents.
        unit: the pixels as they were given, in [0, 1] where that is their range; None for latents.
        size: height and width in pixels that the run works at, multiples of the autoencoder's factor.
        visible: height and width of the picture in it; the rest is margin.
    """

    values: Tensor
    unit: Tensor | None
    size: tuple[int, int]
    visible: tuple[int, int]

    def latents(self, call: Call, space: LatentSpace, place: dict[str, Any], *, mode: bool = False) -> Tensor:
        """Return latents, one row per result, on a device and in a type; `LatentSpace.encode` draws for pixels.

        Args:
            mode: see `LatentSpace.encode`.
        """
        values = self.values.to(**place)
        if self.unit is None:
            return spread_rows(values, call.images)
        return space.encode(values, call.images, rng=call.rng, mode=mode)

    @property
    def latent(self) -> bool:
        """Whether these are latents."""
        return self.unit is None

    @property
    def pixels(self) -> Tensor:
        """The pixels without the margin."""
        return self.values[..., : self.visible[0], : self.visible[1]]


def read_picture(
    image: ImageInput | None,
    *,
    factor: int,
    channels: int = 4,
    height: int | None = None,
    width: int | None = None,
    box: Box | None = None,
) -> Picture:
    """Return a caller's picture: resized where a size is given, else at its own size with a margin to fit.

    Args:
        image: pictures of one size in any form; a tensor with `channels` channels is latents.
        factor: pixels per latent and side.
        box: (left, top, right, bottom) of the part to take, which then fills height and width in its own ratio.

    Raises:
        InputError: when there is none, or it cannot be read; NonFiniteError for NaN and infinity.
    """
    if image is None:
        raise InputError("No `image` was given; pass the picture to start from.")
    reader = VaeImageProcessor(
        do_resize=height is not None or width is not None,
        vae_scale_factor=factor,
        vae_latent_channels=channels,
        do_convert_rgb=True,
        do_normalize=False,
    )
    unit = reader.preprocess(image, height, width, "default" if box is None else "fill", box)
    if is_latents(image, channels):
        own = unit.shape[-2] * factor, unit.shape[-1] * factor
        return Picture(unit, None, own, own)
    padded, crop = pad_to_multiple(unit if unit.min() < 0 else reader.normalize(unit), factor)
    return Picture(padded, unit, (padded.shape[-2], padded.shape[-1]), (crop.height, crop.width))


def upright_pictures(image: Any) -> list[Any]:
    """Return a caller's pictures as the processors of transformers take them: PIL pictures upright and in RGB."""
    many = image if isinstance(image, (list, tuple)) else [image]
    return [decode(one) if hasattr(one, "getbands") else one for one in many]
