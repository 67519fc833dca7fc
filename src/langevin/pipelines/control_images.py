"""Control images: the one way from a user's picture to the tensor that ControlNets and T2I-Adapters see.

The picturebook's ControlNet was trained on the same numbers, which a test compares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..core.errors import InputError
from ..core.images import ImageInput, decode, luminance, sort_out, to_tensor
from .image_processor import VaeImageProcessor
from .masks import mask_tensor

SMOOTHING = 1.4
"""Standard deviation, in pixels, of the Gaussian before the edges are sought."""


def control_tensor(
    image: ImageInput, height: int, width: int, batch: int, *, channels: int = 3, per_prompt: int = 1
) -> torch.Tensor:
    """Return control images as float32 (batch, channels, height, width) in [0, 1].

    PIL pictures are converted to RGB or grey and resampled with Lanczos; arrays and tensors take the nearest pixel.
    Transparency is laid over black, on which conditions are drawn. Nothing is normalised. Tensors may hold -1 for
    hidden pixels, as `make_inpaint_condition` makes them.

    Args:
        image: one picture, or one per prompt, of any kind; four-channel tensors are not taken for latents.
        height, width: in pixels.
        batch: number of pictures that are generated, `per_prompt` for each prompt.
        channels: of the network's condition: 3, 1 (luminance), or a number that `image`, a tensor, has.

    Raises:
        InputError: when the number of pictures is neither 1 nor that of the prompts, or the channels do not fit.
        NonFiniteError: for NaN and infinity.
    """
    kind, many = sort_out(image, what="control image")
    if kind == "pil":
        pictures = [decode(one, background="black") for one in many]
        image = [one.convert("L") for one in pictures] if channels == 1 else pictures
    elif kind == "np":
        image = to_tensor(image, background="black")
    processor = VaeImageProcessor(
        vae_scale_factor=1, vae_latent_channels=0, do_normalize=False, do_convert_rgb=channels == 3
    )
    pixels = processor.preprocess(image, height, width).float()
    if channels == 1 and pixels.shape[1] == 3:
        pixels = luminance(pixels)
    if pixels.shape[1] != channels:
        raise InputError(f"The condition has {channels} channels; the control image has {pixels.shape[1]}.")
    if len(pixels) == 1:
        return pixels.expand(batch, -1, -1, -1).contiguous()
    if len(pixels) * per_prompt != batch:
        raise InputError(
            f"{len(pixels)} control images do not fit {batch // per_prompt} prompts; give one, or one per prompt."
        )
    return pixels.repeat_interleave(per_prompt, 0)


def make_inpaint_condition(image: ImageInput, mask: ImageInput) -> torch.Tensor:
    """Return an inpainting ControlNet's condition, (batch, 3, height, width): in [0, 1], -1 where the mask is white.

    Args:
        image: pictures of any kind, floats in [0, 1]; transparency is laid over white.
        mask: anything that `mask_tensor` takes, one or as many as pictures; another size is brought to the picture's.

    Raises:
        InputError: for values below 0, or when the number of masks does not fit.
    """
    pixels = to_tensor(image).float()
    if pixels.shape[1] not in (1, 3) or pixels.min() < 0 or pixels.max() > 1:
        raise InputError("A picture to inpaint has one or three channels with values in [0, 1].")
    hole = mask_tensor(mask, *pixels.shape[-2:], batch=len(pixels)).to(pixels.device)
    return torch.where(hole > 0, -1.0, pixels.expand(-1, 3, -1, -1))


def canny(image: ImageInput, low: float = 100, high: float = 200) -> Any:
    """Return the edges of a picture, white on black in mode L; a list of them for a list or a batch.

    A convenience for examples and tests, which needs no further package: Gaussian, Sobel, thinning along the gradient,
    hysteresis. Canny, A Computational Approach to Edge Detection, IEEE PAMI 8 (1986).

    Args:
        image: pictures of any kind, floats in [0, 1]; transparency is laid over black.
        low, high: thresholds of the sum of the absolute derivatives of 0..255 grey, each with the Sobel weight 8 in
            total. Edges start above `high` and go on above `low`.

    Raises:
        InputError: when `low` is larger than `high`.
    """
    from PIL import Image as pil

    if not 0 <= low <= high:
        raise InputError(f"The thresholds must satisfy 0 <= low <= high; got {low} and {high}.")
    kind, many = sort_out(image)
    pixels = to_tensor([decode(one, background="black") for one in many] if kind == "pil" else many, background="black")
    edges = [pil.fromarray(_edges(grey.numpy() * 255, low, high)) for grey in luminance(pixels.float().cpu())[:, 0]]
    many_out = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
    return edges if many_out else edges[0]


def _edges(grey: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 255 on the edges of a grey picture (height, width) in 0..255, else 0 (uint8)."""
    radius = round(3 * SMOOTHING)
    bell = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SMOOTHING) ** 2)
    smooth = _along(_along(grey.astype(np.float64), bell / bell.sum(), 0), bell / bell.sum(), 1)
    slope, weights = np.array([-1.0, 0, 1]), np.array([1.0, 2, 1])
    dx, dy = _along(_along(smooth, slope, 1), weights, 0), _along(_along(smooth, slope, 0), weights, 1)
    strength = np.abs(dx) + np.abs(dy)
    thin = strength * _is_ridge(strength, dx, dy)
    return _connected(thin > high, thin > low).astype(np.uint8) * 255


def _along(values: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Return the correlation with a kernel along one axis; the border is repeated."""
    radius, length = len(kernel) // 2, values.shape[axis]
    places = np.arange(length)
    return sum(w * values.take((places + k).clip(0, length - 1), axis) for k, w in enumerate(kernel, -radius))


def _is_ridge(strength: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Return where the gradient is strongest among its two neighbours in its own direction, one of four."""
    padded = np.pad(strength, 1)
    rows, columns = strength.shape
    sector = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(strength.shape, dtype=bool)
    for which, (right, down) in enumerate(((1, 0), (1, 1), (0, 1), (-1, 1))):
        ahead = padded[1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
        behind = padded[1 - down : 1 - down + rows, 1 - right : 1 - right + columns]
        ridge |= (sector == which) & (strength > behind) & (strength >= ahead)
    return ridge


def _connected(seeds: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the allowed pixels that touch a seed, directly or through other allowed pixels, in eight directions."""
    free, found = np.pad(allowed, 1), np.pad(seeds, 1)
    free &= ~found
    steps = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    front = np.argwhere(found)
    while len(front):
        around = (front[:, None] + steps).reshape(-1, 2)
        around = around[free[around[:, 0], around[:, 1]]]
        front = np.unique(around, axis=0)
        free[front[:, 0], front[:, 1]] = False
        found[front[:, 0], front[:, 1]] = True
    return found[1:-1, 1:-1]
