"""The six backgrounds of the picturebook, in each of the five styles."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .drawing import CHALK, PAPER, SLATE, WHITE, Rgb, grain, mix

VARIANTS = 6
_SCALE = 4

SKIES: dict[str, tuple[Rgb, Rgb]] = {
    "meadow": ((176, 220, 246), (240, 248, 244)),
    "sea": ((255, 226, 198), (255, 246, 228)),
    "night": ((28, 32, 74), (78, 80, 142)),
    "snow": ((186, 204, 226), (226, 234, 244)),
    "desert": ((250, 206, 170), (255, 240, 208)),
}

PLAINS: tuple[Rgb, ...] = (
    (250, 240, 218),
    (220, 236, 246),
    (246, 226, 230),
    (224, 242, 226),
    (234, 228, 246),
    (240, 240, 236),
)


class _Canvas:
    """A picture four times too large, with shapes in shares of its side."""

    def __init__(self, size: int, top: Rgb, bottom: Rgb) -> None:
        from PIL import Image, ImageDraw

        self.side = size * _SCALE
        ramp = np.linspace(0, 1, self.side, dtype=np.float32)[:, None, None]
        rows = np.asarray(top, np.float32) * (1 - ramp) + np.asarray(bottom, np.float32) * ramp
        self.image = Image.fromarray(np.broadcast_to(rows, (self.side, self.side, 3)).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def ridge(
        self, height: float, swing: float, waves: float, phase: float, fill: Rgb, edge: Rgb | None = None
    ) -> None:
        """Fill everything under a wavy line."""
        xs = np.linspace(0, 1, 49)
        ys = height + swing * np.sin(2 * math.pi * (waves * xs + phase))
        line = [(x * self.side, y * self.side) for x, y in zip(xs, ys, strict=True)]
        self.draw.polygon([*line, (self.side, self.side), (0, self.side)], fill=fill)
        if edge is not None:
            self.draw.line(line, fill=edge, width=round(self.side / 64), joint="curve")

    def dot(self, x: float, y: float, radius: float, fill: Rgb) -> None:
        """Fill a small circle."""
        s = self.side
        self.draw.ellipse([(x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s], fill=fill)

    def stroke(self, points: list[tuple[float, float]], width: float, fill: Rgb) -> None:
        """Draw a thin line."""
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(scaled, fill=fill, width=max(1, round(width * self.side)), joint="curve")


def _tone(style: str, night: bool) -> Any:
    """Return the function that carries a colour of the flat style into `style`."""
    if style == "outline":
        return lambda c: mix(c, (250, 250, 255), 0.62 if night else 0.70)
    if style == "pastel":
        return lambda c: mix(c, WHITE, 0.24 if night else 0.42)
    if style == "chalk":
        return lambda c: mix(SLATE, c, 0.06 if night else 0.17)
    return lambda c: c


def _paint(background: str, style: str, variant: int, size: int) -> Any:
    """Return the oversampled picture of a background."""
    rng = np.random.default_rng([variant, 7])
    phase = variant / VARIANTS
    tone = _tone(style, background == "night")
    edge = {"outline": (150, 150, 168), "chalk": mix(SLATE, CHALK, 0.55)}.get(style)
    if background == "plain":
        base = tone(PLAINS[variant % len(PLAINS)])
        return _Canvas(size, mix(base, WHITE, 0.25) if style != "chalk" else base, base).image
    top, bottom = (tone(c) for c in SKIES[background])
    canvas = _Canvas(size, top, bottom)
    if background == "meadow":
        canvas.ridge(0.64, 0.045, 1.0, phase, tone((206, 230, 164)), edge)
        canvas.ridge(0.76, 0.035, 0.8, phase + 0.45, tone((176, 214, 122)), edge)
        for _ in range(11):
            x, y = rng.uniform(0.03, 0.97), rng.uniform(0.83, 0.97)
            canvas.stroke([(x - 0.012, y - 0.03), (x, y), (x + 0.014, y - 0.034)], 0.010, tone((134, 184, 92)))
    elif background == "sea":
        canvas.ridge(0.60, 0.0, 1.0, 0.0, tone((150, 212, 220)), edge)
        for row, (y, blue) in enumerate(((0.70, (124, 196, 212)), (0.81, (100, 178, 202)), (0.92, (80, 160, 190)))):
            canvas.ridge(y, 0.014, 4.0, phase + 0.3 * row, tone(blue), edge or tone((206, 238, 240)))
    elif background == "night":
        for _ in range(22):
            x, y = rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.66)
            canvas.dot(x, y, rng.choice([0.007, 0.010, 0.013]), edge or tone((250, 244, 206)))
        canvas.ridge(0.74, 0.04, 1.0, phase, tone((54, 62, 104)), edge)
        canvas.ridge(0.84, 0.03, 0.8, phase + 0.4, tone((42, 48, 84)), edge)
    elif background == "snow":
        canvas.ridge(0.66, 0.04, 1.0, phase, tone((226, 234, 246)), edge)
        canvas.ridge(0.77, 0.035, 0.8, phase + 0.5, tone((248, 251, 255)), edge)
        for _ in range(26):
            x, y = rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.72)
            canvas.dot(x, y, rng.choice([0.010, 0.014, 0.018]), edge or WHITE)
    elif background == "desert":
        canvas.ridge(0.62, 0.05, 0.9, phase, tone((244, 212, 150)), edge)
        canvas.ridge(0.74, 0.05, 0.8, phase + 0.4, tone((236, 196, 126)), edge)
        canvas.ridge(0.88, 0.035, 1.1, phase + 0.7, tone((226, 180, 108)), edge)
    return canvas.image


@functools.lru_cache(maxsize=1024)
def scenery(background: str, style: str, variant: int, size: int) -> np.ndarray:
    """Return a background as uint8 of shape (size, size, 3); copy it before drawing on it."""
    full = np.asarray(_paint(background, style, variant, size), dtype=np.float32)
    block = 2 * (size // 64) if style == "pixel" else 1
    cells, step = size // block, _SCALE * block
    picture = full.reshape(cells, step, cells, step, 3).mean(axis=(1, 3))
    if style == "pixel":
        picture = (np.round(picture / 12.0) * 12.0).repeat(block, 0).repeat(block, 1)
    elif style == "chalk":
        picture = picture + 7.0 * grain(size, size, seed=variant, unit=size // 64)[..., None]
    elif style == "outline":
        picture = 0.8 * picture + 0.2 * np.asarray(PAPER, np.float32)
    result = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    result.setflags(write=False)
    return result
