"""Which pictures are the same, and which nearly: a hash of the pixels, and two small copies to compare by.

A difference hash (Krawetz 2013, hackerfactor.com, "Kind of Like That") says which pairs are worth a look, and the
correlation of copies of 16 x 16 pixels in colour decides, which tells a red house from a blue one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

SIDE = 8
MARGIN = 4
"""Levels of 255 by which neighbours have to differ, so that the noise of a flat colour sets no bit."""
APART = 14
"""Bits of the 128 in which the hashes of a pair may differ."""
ALIKE = 0.97
"""Correlation of small copies from which two pictures count as nearly the same."""
COLOUR = 24
"""Levels by which their mean colours may differ."""


@dataclass(frozen=True)
class Likeness:
    """What a picture is recognised by.

    Attributes:
        pixels: hash of its size and its decoded pixels.
        steps: where it gets brighter to the right and downwards, 128 bits as (16,) bytes.
        copy: 16 x 16 pixels, (3, 256).
    """

    pixels: str
    steps: np.ndarray
    copy: np.ndarray


def likeness(picture: Any) -> Likeness:
    """Return what a PIL picture in RGB is recognised by."""
    from PIL import Image

    pixels = blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).hexdigest()
    grey = picture.convert("L")
    across = np.asarray(grey.resize((SIDE + 1, SIDE), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((SIDE, SIDE + 1), Image.Resampling.BOX), np.int16)
    bits = np.concatenate([np.diff(across, axis=1).ravel() > MARGIN, np.diff(down, axis=0).ravel() > MARGIN])
    copy = np.asarray(picture.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BOX))
    return Likeness(pixels, np.packbits(bits), copy.reshape(-1, 3).T)


def near(pictures: Sequence[Likeness]) -> Iterator[tuple[int, int]]:
    """Yield the pairs that look nearly the same, by their numbers, the lower one first."""
    if not pictures:
        return
    steps = np.stack([one.steps for one in pictures])
    means, units = contrast(pictures)
    flat = np.asarray(~units.any(axis=1))
    counts = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)
    for band in range(steps.shape[1]):  # hashes that differ in fewer bits than there are bytes agree in one byte
        order = np.argsort(steps[:, band], kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(steps[order, band])) + 1):
            for k, one in enumerate(group[:-1]):
                rest = group[k + 1 :]
                apart = steps[one] ^ steps[rest]
                close = rest[(counts[apart].sum(1) <= APART) & apart[:, :band].all(1)]  # met in no band before
                if len(close):
                    shift = np.abs(means[close] - means[one]).max(1)
                    alike = (units[close] @ units[one] >= ALIKE) & (shift <= COLOUR)
                    alike |= flat[close] & flat[one] & (shift < MARGIN)
                    yield from ((int(one), int(other)) for other in close[alike])


def contrast(pictures: Sequence[Likeness]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean colours, (pictures, 3), and the small copies around them, (pictures, 768), of length 1.

    A flat colour, with less than a level of contrast, has only zeros.
    """
    copies = np.stack([one.copy for one in pictures]).astype(np.float32)
    means = copies.mean(2)
    units = (copies - means[..., None]).reshape(len(copies), -1)
    sizes = np.linalg.norm(units, axis=1, keepdims=True)
    units *= np.where(sizes < units.shape[1] ** 0.5, 0, 1 / np.maximum(sizes, 1))
    return means, units


def groups(count: int, pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Return the sets of numbers below `count` that pairs connect, those of one member left out."""
    home = list(range(count))

    def root(k: int) -> int:
        while home[k] != k:
            home[k] = k = home[home[k]]
        return k

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        home[high] = low
    members: dict[int, list[int]] = {}
    for k in range(count):
        members.setdefault(root(k), []).append(k)
    return [found for found in members.values() if len(found) > 1]
