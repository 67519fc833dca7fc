"""The invisible mark that Stable Diffusion XL was released with, so that machines can tell its pictures."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..core.imports import is_available, require
from ..core.logging import get_logger

logger = get_logger(__name__)
PACKAGE = "imwatermark"
BITS = tuple(map(int, f"{0xB3EC907BB19E:048b}"))
"""The published message; readers of the mark look for these 48 bits."""
SMALLEST = 256 * 256
"""Pixels that the package needs to hide a message in."""


class Watermark:
    """Marks pictures with the package invisible-watermark, by its method "dwtDct" (Cox et al. 2007).

    Raises:
        MissingDependencyError: when the package is not installed.
    """

    def __init__(self) -> None:
        package = require(PACKAGE, why="A watermark (add_watermarker=True)")
        self.encoder = package.WatermarkEncoder()
        self.encoder.set_watermark("bits", list(BITS))
        announce()

    def __call__(self, images: Tensor) -> Tensor:
        """Return pictures (batch, 3, height, width) in [-1, 1] with the mark, too small ones as they are."""
        height, width = images.shape[-2:]
        if height * width < SMALLEST:
            logger.info("Pictures of %d x %d are too small for a watermark and carry none.", height, width)
            return images
        blue_first = (images.float() + 1.0).mul(127.5).flip(1).movedim(1, -1).cpu().numpy()
        marked = np.stack([self.encoder.encode(np.ascontiguousarray(one), "dwtDct") for one in blue_first])
        result = torch.from_numpy(marked).movedim(-1, 1).flip(1).div(127.5).sub(1.0)
        return result.clamp(-1.0, 1.0).to(images)


@cache
def announce() -> None:
    """Say, once, that pictures are marked."""
    logger.info("Pictures carry an invisible watermark (invisible-watermark); add_watermarker=False switches it off.")


def watermark(wanted: bool | None) -> Watermark | None:
    """Return what marks pictures: as `wanted`, and with None where the package is installed."""
    return Watermark() if wanted or (wanted is None and is_available(PACKAGE)) else None
