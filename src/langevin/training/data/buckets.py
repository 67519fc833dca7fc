"""Aspect-ratio buckets: several sizes of nearly the same area, so that pictures of all shapes lose little to the crop.

Every picture belongs to the size whose shape is nearest to its own (NovelAI 2022, "NovelAI Improvements on Stable
Diffusion"); a batch holds pictures of one size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ...core.errors import InputError

Size = tuple[int, int]
"""Height and width in pixels."""


def plan(resolution: int, *, step: int | None = None, widest: float = 2.0) -> list[Size]:
    """Return the sizes of the buckets: the square, and sizes of at most its area, from the tallest to the widest.

    Args:
        resolution: side of the square, in pixels.
        step: sizes are multiples of it; an eighth of the resolution in whole cells of 8 pixels, 64 at most, if None.
        widest: longer side over shorter one, at most.

    Raises:
        InputError: for a resolution, step or width that leaves no size.
    """
    step = step or min(64, max(8, resolution // 64 * 8))
    if resolution < step or widest < 1:
        raise InputError(f"No bucket has a side of {resolution} in steps of {step} and a shape up to {widest}.")
    found = {(resolution, resolution)}
    for short in range(step, resolution + 1, step):
        long = resolution**2 // short // step * step
        if long <= widest * short:
            found |= {(short, long), (long, short)}
    return sorted(found, key=lambda size: size[1] / size[0])


def nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """Return the one of several sizes that cuts least off a picture; of equals, the larger one."""
    return min(sizes, key=lambda other: (round(loss(size, other), 9), -other[0] * other[1]))


def loss(size: Size, bucket: Size) -> float:
    """Return the share of a picture that the crop takes away, 0 to 1."""
    shapes = size[1] / size[0], bucket[1] / bucket[0]
    return 1 - min(shapes) / max(shapes)


def assign(pictures: Sequence[Size], sizes: Sequence[Size], *, least: int = 1) -> list[Size]:
    """Return the bucket of every picture. Buckets with fewer than `least` pictures are dissolved, poorest first."""
    sizes = list(sizes)
    while pictures:
        found = [nearest(size, sizes) for size in pictures]
        counts = Counter(found)
        sizes = [size for size in sizes if size in counts]
        poorest = min(sizes, key=lambda size: (counts[size], size))
        if counts[poorest] >= least or len(sizes) == 1:
            return found
        sizes.remove(poorest)
    return []


def kept(size: Size, bucket: Size) -> tuple[float, float, float, float]:
    """Return what the crop of the middle keeps of a picture: left, top, right, bottom, in its pixels."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    high, wide = bucket[0] / scale, bucket[1] / scale
    left, top = (size[1] - wide) / 2, (size[0] - high) / 2
    return left, top, left + wide, top + high


def sheet(pictures: Sequence[tuple[str, Callable[[], Any], Size]], *, cell: int = 180) -> Any:
    """Return a contact sheet of pictures in their buckets: what is cut away is dimmed, and the crop has a frame.

    Args:
        pictures: name, function that opens the PIL picture in RGB, and bucket of each.
        cell: pixels per side that a picture may take.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = max(1, min(6, len(pictures)))
    line, gap = 16, 8
    high = cell + 3 * line + gap
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, math.ceil(len(pictures) / columns) * high + gap), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for k, (name, opened, bucket) in enumerate(pictures):
        picture = opened()
        left, top = gap + k % columns * (cell + gap), gap + k // columns * high
        shown = cropped(picture, bucket, cell)
        canvas.paste(shown, (left + (cell - shown.width) // 2, top + (cell - shown.height) // 2))
        size = (picture.height, picture.width)
        while len(name) > 4 and font.getlength(name) > cell:
            name = f"...{name[4:]}"
        texts = (name, f"{size[1]} x {size[0]} -> {bucket[1]} x {bucket[0]}", f"{loss(size, bucket):.1%} cut away")
        for row, text in enumerate(texts):
            pen.text((left, top + cell + 2 + row * line), text, fill="black", font=font)
    return canvas


def cropped(picture: Any, bucket: Size, cell: int) -> Any:
    """Return a small copy of a picture on which what the crop takes away is dimmed and the crop has a frame."""
    from PIL import Image, ImageDraw

    scale = cell / max(picture.size)
    wide, high = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((wide, high))
    edges = kept((picture.height, picture.width), bucket)
    box: Any = tuple(round(edge * scale) for edge in edges)
    shown = Image.blend(small, Image.new("RGB", small.size, (200, 30, 30)), 0.6)
    shown.paste(small.crop(box), (box[0], box[1]))
    ImageDraw.Draw(shown).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="black")
    return shown
