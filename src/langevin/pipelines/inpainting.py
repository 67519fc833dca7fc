"""Inpainting: paint the white part of a mask anew and keep the rest.

Networks trained for it see the mask and the rest of the picture as further channels (Rombach et al. 2022, section 4.5).
With any other network, the rest is put back after every step, noised to the level of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError
from ..core.images import decode, upright
from ..core.rng import normal
from ..diffusion.known import blend
from ..diffusion.table import Plan, Step
from ..families.common import option
from ..families.denoiser import Channels
from ..families.latents import LatentSpace, spread_rows
from .image_processor import VaeImageProcessor
from .inputs import Call, check_rows
from .masks import latent_mask, mask_tensor, masked_image, paste_back
from .pictures import Picture, read_picture
from .regions import Box
from .tasks import keeps_all, started, starting_noise, unchanged

MASKED = ("mask", "masked_image_latents")
"""What callbacks of every inpainting pipeline may ask for beside what its family offers."""


@dataclass
class KeepOutside:
    """A constraint: outside the mask, the sample after each step is the picture at the level of the sample.

    After the last step it is the picture itself, also where `denoising_end` cuts a run: a run that goes on with the
    latents finds there what is to be kept.

    Attributes:
        tensor: the mask at the size of the latents, 1 where the picture is painted anew.
        source, noise: the picture's latents and the noise that is added to them.
        plan: says how much.
    """

    tensor: Tensor
    source: Tensor
    noise: Tensor
    plan: Plan
    name = "mask"

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Return the sample with the kept part put back."""
        known = self.source if step.last else self.plan.settle(step, self.source, self.noise)
        return blend(x, known, 1.0 - self.tensor)


@dataclass(frozen=True)
class Scene:
    """What an inpainting call is given: the picture, the mask over it, and where on the whole picture both are.

    Attributes:
        picture: at the size that the run works at.
        mask: (1 or rows, 1, height, width) of 0 and 1, white is painted anew.
        box: the part (left, top, right, bottom) of the caller's picture that is worked on; None for all of it.
    """

    picture: Picture
    mask: Tensor
    box: Box | None


def read_scene(pipe: Any, call: Call) -> Scene:
    """Return the picture and the mask of a call.

    Raises:
        InputError: when there is no mask, or a crop was asked of anything but a single PIL picture.
    """
    if call["mask_image"] is None:
        raise InputError("No `mask_image` was given; pass a mask, white where the picture is to be painted anew.")
    if not call.get("paste_back", True) and (call.get("mask_feather") or call.get("match_colour")):
        raise InputError("`mask_feather` and `match_colour` act when the kept part is pasted back; set paste_back.")
    size = pipe._size(call.get("height"), call.get("width"))
    box = None if call.get("padding_mask_crop") is None else crop_of(call, size)
    picture = pipe._picture(call, box=box, size=size)
    if box is None:
        return Scene(picture, mask_tensor(call["mask_image"], *picture.size), None)
    mask = upright(call["mask_image"]).crop(box)
    return Scene(picture, mask_tensor(pipe.image_processor.resize(mask, *picture.size, "fill")), box)


def crop_of(call: Call, size: tuple[int, int]) -> Box:
    """Return the part (left, top, right, bottom) of the picture that `padding_mask_crop` asks to work on.

    Raises:
        InputError: for anything but one PIL picture and one PIL mask of its size, and PIL output.
    """
    image, mask = call["image"], call["mask_image"]
    if not (hasattr(image, "getbands") and hasattr(mask, "getbands")):
        raise InputError("`padding_mask_crop` takes one PIL picture and one PIL mask.")
    if call["output_type"] != "pil":
        raise InputError(f"`padding_mask_crop` gives PIL pictures, and output_type is {call['output_type']!r}.")
    image, mask = upright(image), upright(mask)
    if image.size != mask.size:
        raise InputError(f"The mask, {mask.size}, must be as large as the picture, {image.size}.")
    return VaeImageProcessor.get_crop_region(mask, size[1], size[0], call["padding_mask_crop"])


def inpaint(pipe: Any, call: Call) -> Any:
    """Paint the masked part of a picture anew.

    Draw order: the picture's latents, where the network does not see them or strength is below 1; the noise; the
    latents of the picture without its masked part.
    """
    scene = read_scene(pipe, call)
    picture, strength = scene.picture, call["strength"]
    space = pipe._space(call, picture)
    check_rows("masks", len(scene.mask), call)
    sees = option(pipe.unet, "in_channels", space.channels) != space.channels
    pipe._check_channels(space, {"the mask": 1, "the masked picture": space.channels} if sees else {})
    begun = call.get("denoising_start") is not None
    given = call.get("masked_image_latents")
    if given is not None and given.shape[1:] != space.shape(1)[1:]:
        raise InputError(f"`masked_image_latents` has shape {tuple(given.shape)}; it must be {space.shape(1)}.")
    if sees and given is None and picture.latent:
        raise ConfigError("This network sees the masked picture, and latents cannot be masked; pass pixels.")
    if keeps_all(call):
        whole = picture if scene.box is None else read_picture(call["image"], factor=pipe.vae_scale_factor)
        return unchanged(pipe, call, space, whole)
    with started(pipe, call, space) as start:
        place, plan = start.place, start.plan
        hole = spread_rows(latent_mask(scene.mask, *space.size).to(**place), call.images)
        source = picture.latents(call, space, place) if not sees or strength < 1 or begun else None
        noise = starting_noise(call, space, place)
        x = source if begun else plan.start(noise, source if strength < 1 else None)
        masked = masked_latents(call, space, scene, place, needed=sees)
        task: dict[str, Any]
        if sees:
            task = {"channels": (Channels("mask", hole), Channels("masked_image_latents", masked))}
        else:
            task = {"after": (KeepOutside(hole, source, noise, plan),)}
            x = blend(x, plan.start(noise, source), 1.0 - hole) if begun else x
        return deliver(pipe, call, space, scene, pipe._sample(start, x, **task))


def masked_latents(call: Call, space: LatentSpace, scene: Scene, place: dict[str, Any], *, needed: bool) -> Tensor:
    """Return the latents of the picture without its masked part, one row per result.

    Args:
        needed: False when the network does not see them: then they are not computed, and the draw is made all the same.
    """
    given, picture = call.get("masked_image_latents"), scene.picture
    if given is not None:
        return spread_rows(given.to(**place), call.images)
    if picture.latent:
        return torch.zeros(space.shape(call.images), **place)
    if not needed:
        rows = call.images if isinstance(call.rng, list) else len(picture.values)
        return spread_rows(normal(space.shape(rows), generator=call.rng, **place), call.images)
    pixels = masked_image(picture.values, scene.mask).to(**place)
    return space.encode(pixels, call.images, rng=call.rng)


def deliver(pipe: Any, call: Call, space: LatentSpace, scene: Scene, latents: Tensor) -> Any:
    """Return the output of a finished run, with the kept part of the picture as it was."""
    output_type, picture, keeps = call["output_type"], scene.picture, call.get("paste_back", True)
    if output_type == "latent" or (picture.latent and scene.box is None):
        return pipe._finish(call, space, latents)
    options = {"feather": call.get("mask_feather", 0), "match_colour": call.get("match_colour", False)}

    def finish(images: Any) -> Any:
        if scene.box is None:
            return paste_back(images, picture.unit, scene.mask, **options) if keeps else images
        whole, mask = decode(call["image"]), upright(call["mask_image"])
        overlay = pipe.image_processor.apply_overlay
        if not keeps:
            return [overlay(mask, whole, image, scene.box) for image in images]
        white = mask.convert("L").point(lambda value: 255)
        laid = [overlay(white, whole, image, scene.box) for image in images]
        return paste_back(laid, whole, inside(mask_tensor(mask), scene.box), **options)

    return pipe._deliver(call, pipe._decoded(space, latents), finish)


def inside(mask: Tensor, box: Box) -> Tensor:
    """Return the mask, black outside the box (left, top, right, bottom)."""
    left, top, right, bottom = box
    cut = torch.zeros_like(mask)
    cut[..., top:bottom, left:right] = mask[..., top:bottom, left:right]
    return cut
