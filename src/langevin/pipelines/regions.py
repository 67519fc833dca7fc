"""Where on a picture: boxes around a mask, and margins that make any size fit an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.errors import InputError, check_choice

Box = tuple[int, int, int, int]
FILLS = ("reflect", "edge")


@dataclass(frozen=True)
class Crop:
    """The place of a picture inside its padded version, in pixels: the first `height` rows and `width` columns."""

    height: int
    width: int

    def apply(self, x: Any) -> Any:
        """Return the picture without its margin.

        Args:
            x: tensor (..., height, width), array (..., height, width, channels), PIL picture, or a list of them.
        """
        if isinstance(x, (list, tuple)):
            return [self.apply(one) for one in x]
        if isinstance(x, torch.Tensor):
            return x[..., : self.height, : self.width]
        if isinstance(x, np.ndarray):
            return x[..., : self.height, : self.width, :]
        return x if x.size == (self.width, self.height) else x.crop((0, 0, self.width, self.height))


def pad_to_multiple(pixels: torch.Tensor, factor: int) -> tuple[torch.Tensor, Crop]:
    """Return pixels whose height and width are multiples of `factor`, and the place of the picture in them.

    The margin mirrors the picture at its last row and column. It is added below and at the right, so that every pixel
    keeps its coordinates; `Crop.apply` takes it away.

    Args:
        pixels: (..., height, width), any type and size from 1 x 1.
        factor: in pixels.
    """
    height, width = pixels.shape[-2:]
    for axis, length in ((-2, height), (-1, width)):
        index = torch.from_numpy(margin_index(0, length, -length % factor, fill="reflect")).to(pixels.device)
        pixels = pixels if len(index) == length else pixels.index_select(axis, index)
    return pixels, Crop(height, width)


def margin_index(before: int, length: int, after: int, *, fill: str) -> np.ndarray:
    """Return, for every place of a padded axis, the place in the axis of `length` that it repeats (int64).

    Mirroring does not repeat the border itself and goes back and forth when the margin is longer than the picture.
    """
    check_choice("fill", fill, FILLS)
    places = np.arange(-before, length + after)
    if fill == "edge" or length == 1:
        return places.clip(0, length - 1)
    places = places % (2 * length - 2)
    return np.minimum(places, 2 * length - 2 - places)


def crop_box(mask: np.ndarray, width: int, height: int, pad: int = 0) -> Box:
    """Return the box (left, top, right, bottom) around a mask, with a margin, in the aspect ratio of width : height.

    The box is grown, never shrunk, moved inside the picture, and cut where the picture is too small for the ratio.

    Args:
        mask: (height, width), anything but zero is inside. An empty mask gives the whole picture.
        width, height: size that the box will be processed at; only their ratio matters.
        pad: margin in pixels.

    Raises:
        InputError: for a negative margin.
    """
    if pad < 0:
        raise InputError(f"The margin of a crop is {pad}; it must not be negative.")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    limit_y, limit_x = mask.shape
    if not len(rows):
        return 0, 0, limit_x, limit_y
    left, right = max(int(columns[0]) - pad, 0), min(int(columns[-1]) + 1 + pad, limit_x)
    top, bottom = max(int(rows[0]) - pad, 0), min(int(rows[-1]) + 1 + pad, limit_y)
    ratio = width / height
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grow(top, bottom, (right - left) / ratio, limit_y)
    else:
        left, right = _grow(left, right, (bottom - top) * ratio, limit_x)
    return left, top, right, bottom


def _grow(low: int, high: int, length: float, limit: int) -> tuple[int, int]:
    """Return an interval of at least `length`, around the given one where 0..limit allows it."""
    missing = int(length - (high - low))
    low, high = low - missing // 2, high + missing - missing // 2
    back = max(high - limit, 0)
    low, high = low - back, high - back
    return max(low, 0), min(high + max(-low, 0), limit)
