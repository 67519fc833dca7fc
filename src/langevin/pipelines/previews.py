"""Pictures of a run on its way: every few steps, decoded by something smaller than the autoencoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError, InputError, check_count
from ..core.images import to_images
from ..core.rng import seeded, uniform
from ..families.latents import LatentSpace

if TYPE_CHECKING:
    from PIL.Image import Image

PATCHES = (4, 8, 16)
"""Patches of one colour per side, in the pictures that a linear map is fitted to."""
SIDE = 16
"""Latents per side of those pictures."""


class PreviewCallback:
    """A callback that shows what a run has so far, the pictures of a whole batch.

    Latents that hold much noise are brought to unit variance first, so that early steps show noise and colours, late
    ones the picture. Without a decoder a picture has one pixel per latent, by a linear map that is fitted to the
    pipeline's autoencoder by least squares: it reads a few pictures of coloured patches, once.

    Args:
        show: called as `show(step_index, pictures)` with a list of PIL pictures, or a folder for
            `step-003-0.png`, ...: the step and the row of the batch, both from 0.
        every: steps from one preview to the next; the last step is shown in any case.
        decoder: an `AutoencoderTiny` made for the pipeline's latents, on their device, or None.

    Raises:
        InputError: for something that is none of these.
        ConfigError: for a pipeline that has no latents.
    """

    tensor_inputs: ClassVar[Sequence[str]] = ("latents",)

    def __init__(
        self, show: Callable[[int, list[Image]], Any] | str | os.PathLike, *, every: int = 5, decoder: Any = None
    ) -> None:
        check_count("every", every)
        if not callable(show) and not isinstance(show, (str, os.PathLike)):
            raise InputError(
                f"`show` is a function of (step_index, pictures) or a folder, not a {type(show).__name__}."
            )
        if decoder is not None and not hasattr(decoder, "decode"):
            raise InputError(f"`decoder` is an AutoencoderTiny or None, not a {type(decoder).__name__}.")
        self.show, self.every, self.decoder = show, every, decoder
        self._maps: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

    def __call__(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Show the latents of a step that is due, and change nothing."""
        if step_index % self.every == 0 or step_index == pipeline.num_timesteps - 1:
            pictures = to_images(self.decoded(pipeline, callback_kwargs["latents"]))
            if callable(self.show):
                self.show(step_index, pictures)
            else:
                write(Path(self.show), step_index, pictures)
        return callback_kwargs

    @torch.no_grad()
    def decoded(self, pipeline: Any, latents: Tensor) -> Tensor:
        """Return pictures (batch, 3, height, width) in [-1, 1] of latents (batch, channels, h, w)."""
        if not hasattr(pipeline, "_own_space"):
            raise ConfigError(f"A preview decodes latents, and {type(pipeline).__name__} has none; leave it out.")
        latents = latents / latents.float().std(dim=(1, 2, 3), keepdim=True).clamp(min=1.0).to(latents.dtype)
        factor = pipeline.vae_scale_factor
        space = pipeline._own_space(latents.shape[1], latents.shape[-2] * factor, latents.shape[-1] * factor)
        if self.decoder is not None:
            return LatentSpace(self.decoder, space.channels, space.height, space.width).decode(latents)
        if space.vae is None:
            raise ConfigError("A preview without a `decoder` needs the pipeline's vae, and there is none; pass one.")
        if space.vae not in self._maps:
            self._maps[space.vae] = fit(pipeline._own_space(space.channels, SIDE * factor, SIDE * factor), latents)
        return applied(self._maps[space.vae].to(latents.device), latents.float())


def write(folder: Path, step_index: int, pictures: Sequence[Image]) -> None:
    """Write the pictures of a step into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, picture in enumerate(pictures):
        picture.save(folder / f"step-{step_index:03d}-{row}.png")


def applied(weights: Tensor, latents: Tensor) -> Tensor:
    """Return the pictures of latents (batch, channels, h, w) by a linear map (3, channels + 1), an offset last."""
    return F.conv2d(latents, weights[:, :-1, None, None], weights[:, -1])


def fit(space: LatentSpace, like: Tensor) -> Tensor:
    """Return the linear map (3, channels + 1) from latents to the mean colour of the pixels that each stands for.

    Args:
        space: of the size of the pictures that are read.
        like: has the device and type of latents.
    """
    rng, height, width = seeded(0), space.height, space.width
    grids = [uniform((4, 3, side, side), generator=rng) * 2 - 1 for side in PATCHES]
    pixels = torch.cat([F.interpolate(grid, size=(height, width), mode="nearest") for grid in grids])
    latents = space.encode(pixels.to(like), len(pixels), rng=rng).float().cpu()
    known = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).movedim(1, -1).flatten(0, -2)
    colours = F.interpolate(pixels, size=space.size, mode="area").movedim(1, -1).flatten(0, -2)
    return torch.linalg.lstsq(known, colours).solution.T.contiguous()
