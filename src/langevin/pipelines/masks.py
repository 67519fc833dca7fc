"""Masks: white is repainted, black is kept. From any input to a tensor, to latents, and back onto the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from ..core.errors import InputError, check_choice
from ..core.images import ImageInput, decode, from_array, luminance, sort_out, to_grey, to_tensor
from ..core.logging import get_logger
from .image_processor import SLACK, VaeImageProcessor
from .regions import FILLS, margin_index

if TYPE_CHECKING:
    from PIL.Image import Image

logger = get_logger(__name__)
RING = 16
"""Width in pixels of the band around a hole that `match_colour` compares."""
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""RGB to Y'CbCr without offsets, ITU-R BT.601."""


def mask_tensor(
    mask: ImageInput, height: int | None = None, width: int | None = None, *, batch: int | None = None
) -> torch.Tensor:
    """Return a mask as float32 (batch, 1, height, width) of 0 (kept) and 1 (repainted), cut at one half.

    Args:
        mask: PIL pictures of any mode (colours count by their luminance, transparency is black); arrays (height,
            width) or (batch, height, width), also with one, three or four channels as last axis; tensors (height,
            width) or (batch, height, width), also with one or three channels as second or last axis; lists of one kind.
            Floats lie in [0, 1]; integers are taken for 0..255 or 0..65535 by their type, or for 0 and 1 when there is
            nothing larger; bool is itself.
        height, width: of the result in pixels; None keeps the mask's own. PIL pictures are resampled before they are
            cut, the others take the nearest pixel. Another aspect ratio is stretched, which is logged.
        batch: number of pictures; one mask is given to all of them.

    Raises:
        InputError: for an empty list, values outside [0, 1], or a number of masks that is neither 1 nor `batch`.
        NonFiniteError: for NaN and infinity.
    """
    kind, many = sort_out(mask, what="mask")
    if kind == "pil":
        many = [decode(one, background="black") for one in many]
        shapes = {(one.height, one.width) for one in many}
    else:
        many = [_grey(one, kind) for one in many]
        shapes = {tuple(one.shape[-2:]) for one in many}
    if height is None and width is None and len(shapes) > 1:
        raise InputError(f"Masks of one call must have one size; got {sorted(shapes)} (height, width).")
    for high, wide in sorted(shapes):
        target = high if height is None else height, wide if width is None else width
        if abs(high * target[1] / (wide * target[0]) - 1) > 0.05:
            logger.warning("A mask of %d x %d is stretched to %d x %d (height x width).", high, wide, *target)
    processor = VaeImageProcessor(
        vae_scale_factor=1, vae_latent_channels=0, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    values = torch.cat([processor.preprocess(one, height, width) for one in many])
    if kind == "pil" and not values.any() and any(one.getbbox() for one in many):
        logger.warning("The mask holds grey, but nothing as light as one half; nothing will be repainted.")
    if batch is None or len(values) == batch:
        return values
    if len(values) != 1:
        raise InputError(f"{len(values)} masks do not fit {batch} pictures; give one mask, or one per picture.")
    return values.expand(batch, -1, -1, -1).clone()


def _grey(mask: Any, kind: str) -> torch.Tensor:
    """Return one array or tensor as (batch, 1, height, width) in [0, 1]."""
    whole = not (mask.is_floating_point() if kind == "pt" else np.issubdtype(mask.dtype, np.floating))
    if whole and 0 not in mask.shape:
        wide = mask.to(torch.int64) if kind == "pt" else mask.astype(np.int64)
        mask = wide > 0 if wide.min() >= 0 and wide.max() <= 1 else mask
    values = to_grey(mask)
    low, high = values.min(), values.max()
    if low < -SLACK or high > 1 + SLACK:
        raise InputError(f"A mask holds values from {low:g} to {high:g}; floats lie in [0, 1]; or give uint8 or bool.")
    return values.float()


def latent_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return a mask (batch, 1, height, width) at the size of the latents.

    One pixel of each latent's patch decides, as in the documented pipelines, so that thin strokes can vanish.
    """
    return functional.interpolate(mask, size=(height, width))


def masked_image(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return pixels (batch, 3, height, width) in [-1, 1] with 0, mid-grey, where the mask is one half or more."""
    return image * (mask < 0.5)


def paste_back(
    result: Any, original: ImageInput, mask: ImageInput, *, feather: int = 0, match_colour: bool = False
) -> Any:
    """Return the result with every kept pixel exactly the original's, in the result's own type.

    Args:
        result: PIL pictures, an array (batch, height, width, channels) or a tensor (batch, channels, height, width) in
            [0, 1], or a list of one kind.
        original: of the same height and width, one or as many as results; floats in [0, 1] or, when there is anything
            below 0, in [-1, 1]. Transparency is laid over white.
        mask: whatever `mask_tensor` takes; a mask of another size is resized.
        feather: pixels inside the hole over which the original fades out; kept pixels never change. Smaller where a
            picture's hole is not as deep.
        match_colour: correct the generated part's colours: mean and standard deviation of each Y'CbCr channel, measured
            in a band of 16 pixels around the hole in both pictures, are brought from the result's to the original's.

    Raises:
        InputError: when sizes or numbers do not fit.
        NonFiniteError: for NaN and infinity.
    """
    if feather < 0:
        raise InputError(f"feather is {feather}; it is a number of pixels, 0 or more.")
    kind, many = sort_out(result, what="result")
    if kind == "np" and any(one.ndim > 2 and one.shape[-1] not in (1, 3) for one in many):
        raise InputError("Results have one or three channels, the last axis of an array.")
    made = to_tensor(many)
    source = to_tensor(original).to(device=made.device, dtype=torch.float32)
    source = source / 2 + 0.5 if source.min() < 0 else source
    if source.shape[-2:] != made.shape[-2:] or len(source) not in (1, len(made)):
        raise InputError(f"The original, {tuple(source.shape)}, does not fit the result, {tuple(made.shape)}.")
    source = _channels(source, made.shape[1]).expand_as(made)
    hole = mask_tensor(mask, *made.shape[-2:], batch=len(made)).to(made.device)
    values = made.float()
    if match_colour:
        values = _match_colour(values, source, hole)
    weight = _feather(hole, feather)
    blend = torch.where(weight < 1, source + weight * (values - source), values)
    return _like(torch.where(hole > 0, blend, source), result, kind)


def _channels(pixels: torch.Tensor, channels: int) -> torch.Tensor:
    """Return pixels with one or three channels."""
    if pixels.shape[1] not in (1, 3) or channels not in (1, 3):
        raise InputError(f"Pictures have one or three channels, not {pixels.shape[1]} and {channels}.")
    return luminance(pixels) if channels == 1 else pixels.expand(-1, 3, -1, -1)


def _like(pixels: torch.Tensor, result: Any, kind: str) -> Any:
    """Return pixels in the kind, type and axes of `result`."""
    if isinstance(result, (list, tuple)):
        sizes = [len(one) if kind != "pil" and one.ndim == 4 else 1 for one in result]
        return [_like(part, one, kind) for part, one in zip(pixels.split(sizes), result, strict=True)]
    if kind == "pil":
        return from_array(pixels.movedim(1, -1).cpu().numpy())[0]
    if kind == "pt":
        scale = 255 if result.dtype == torch.uint8 else 1
        values = pixels if scale == 1 else (pixels * scale).round()
        return values.reshape(result.shape).to(result.dtype)
    array = pixels.movedim(1, -1).cpu().numpy().reshape(result.shape)
    return (array * 255).round().astype(np.uint8) if result.dtype == np.uint8 else array.astype(result.dtype)


def _grown(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Return the mask with a border of `pixels` added on all sides."""
    for _ in range(pixels):
        mask = functional.max_pool2d(mask, 3, 1, 1)
    return mask


def _feather(hole: torch.Tensor, pixels: int) -> torch.Tensor:
    """Return 0..1: how far inside the hole a pixel is, up to `pixels` or, if that is less, the hole's depth."""
    kept, depth = 1 - hole, hole.clone()
    for _ in range(pixels):
        kept = _grown(kept, 1)
        depth += 1 - kept
    return depth / depth.amax((1, 2, 3), keepdim=True).clamp(min=1)


def _match_colour(made: torch.Tensor, source: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Return the result with the colours of its band around the hole brought to the original's, per picture.

    Statistics as in Reinhard et al., Color transfer between images (2001), in Y'CbCr. A picture without a band, or a
    band without contrast, keeps its contrast; the change of contrast is at most a factor of two.
    """
    band = (_grown(hole, RING) - hole)[:, 0].bool()
    space = torch.tensor(YCBCR, device=made.device) if made.shape[1] == 3 else torch.ones(1, 1, device=made.device)
    matched = []
    for x, original, inside in zip(made, source, band, strict=True):
        if not inside.any():
            matched.append(x)
            continue
        ours, theirs = space @ x[:, inside], space @ original[:, inside]
        spread, wanted = ours.std(1, correction=0), theirs.std(1, correction=0)
        gain = torch.where(spread > 1e-3, (wanted / spread.clamp(min=1e-3)).clamp(0.5, 2), 1.0)[:, None]
        shifted = (space @ x.flatten(1) - ours.mean(1, keepdim=True)) * gain + theirs.mean(1, keepdim=True)
        matched.append((torch.linalg.inv(space) @ shifted).clamp(0, 1).view_as(x))
    return torch.stack(matched)


def outpaint(
    image: Any, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0, *, fill: str = "edge"
) -> tuple[Image, Image]:
    """Return a larger RGB picture and its mask (L, white in the margin), for an inpainting pipeline.

    Args:
        image: a path or a PIL picture of any mode.
        left, right, top, bottom: margins in pixels.
        fill: what the margin starts from: "edge" repeats the border, "reflect" mirrors the picture, anything else is
            the name of a colour.

    Raises:
        InputError: for negative margins or an unknown fill.
    """
    from PIL import Image as pil
    from PIL import ImageColor

    if min(left, right, top, bottom) < 0:
        raise InputError("Margins of outpaint are numbers of pixels, 0 or more.")
    if fill not in FILLS and fill.lower() not in ImageColor.colormap and not fill.startswith("#"):
        check_choice("fill", fill, [*FILLS, "white", "black", "grey"])
    picture = decode(image)
    size = picture.width + left + right, picture.height + top + bottom
    inner = (left, top, left + picture.width, top + picture.height)
    if fill in FILLS:
        rows = margin_index(top, picture.height, bottom, fill=fill)
        columns = margin_index(left, picture.width, right, fill=fill)
        larger = pil.fromarray(np.asarray(picture)[rows][:, columns])
    else:
        larger = pil.new("RGB", size, fill)
        larger.paste(picture, inner)
    mask = pil.new("L", size, 255)
    mask.paste(0, inner)
    return larger, mask
