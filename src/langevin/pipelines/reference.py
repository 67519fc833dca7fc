"""Pictures that are steered by a reference picture, without training and without another network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError, check_number
from ..core.images import ImageInput
from ..core.rng import normal, seeded
from ..diffusion.table import Plan
from ..families.common import dtype_of, option
from ..families.denoiser import Attachment
from ..families.latents import LatentSpace
from ..families.reference import Reference, referring
from .inputs import Call
from .latent import LatentPipeline
from .pictures import read_picture

SEED = 0
"""Of the reference's own noise, which leaves the random streams of a call alone."""


class ReferenceMixin:
    """The control of a pipeline by a reference picture, whatever its family, task and other controls."""

    unet: Any
    vae_scale_factor: int
    _reference: tuple[ImageInput, float]

    def _attachments(self, call: Call, space: LatentSpace, plan: Plan) -> Sequence[Attachment]:
        """Return what reads the reference, and the pipeline's other controls."""
        image, strength = self._reference
        place: dict[str, Any] = {"height": space.height, "width": space.width, "channels": space.channels}
        picture = read_picture(image, factor=self.vae_scale_factor, **place)
        rng = seeded(SEED)
        latents = picture.values[:1].to(call.device, dtype_of(self.unet, torch.float32))
        latents = latents if picture.latent else space.encode(latents, 1, rng=rng)
        noise = normal(latents.shape, generator=rng, device=latents.device, dtype=latents.dtype)
        others = super()._attachments(call, space, plan)
        return [Reference(self.unet, latents, noise, strength), *others]


def reference_only(pipe: Any, picture: ImageInput, strength: float = 1.0) -> Any:
    """Return a pipeline over the same components whose self-attentions also look at a reference picture.

    It is called like `pipe`, costs one reading of one picture more per step, and draws the same noise.

    Args:
        pipe: any latent pipeline whose network takes latents alone; it is not changed.
        picture: the reference, brought to the size of the result; the first of several.
        strength: how much a place of the reference counts beside one of the result, above 0; 1 counts the same.

    Raises:
        InputError: for a strength of 0 or less.
        ConfigError: for another kind of pipeline, or a network that takes further channels.
    """
    check_number("strength", strength, low=1e-6)
    if not isinstance(pipe, LatentPipeline):
        raise ConfigError(f"A reference steers pipelines that denoise latents; {type(pipe).__name__} is none.")
    unet = pipe._part("unet")
    if not isinstance(unet, nn.Module) or option(unet, "in_channels") != pipe._channels():
        raise ConfigError("The unet must be a module that takes latents alone, as text-to-image checkpoints have it.")
    kind: Any = type(pipe)

    @wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with referring(self.unet):
            return kind.__call__(self, *args, **kwargs)

    made: Any = copy.copy(pipe)
    made.__class__ = type(kind.__name__, (ReferenceMixin, kind), {"__call__": call, "__doc__": kind.__doc__})
    made._reference = (picture, strength)
    return made
