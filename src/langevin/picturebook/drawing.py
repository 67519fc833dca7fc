"""How the picturebook draws: colours, a pen for unit squares, and the five styles.

Sprites are drawn eight times too large and averaged down, so edges are smooth; everything is cached, because a
training run asks for the same sprites again and again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .objects import DRAWERS

OVERSAMPLING = 8

Rgb = tuple[int, int, int]

COLOUR_VALUES: dict[str, Rgb] = {
    "red": (222, 52, 52),
    "orange": (246, 142, 38),
    "yellow": (252, 214, 54),
    "green": (58, 158, 72),
    "blue": (48, 108, 218),
    "purple": (138, 72, 184),
    "pink": (250, 152, 196),
    "brown": (134, 84, 48),
    "white": (251, 250, 246),
    "black": (46, 44, 52),
}

INK: Rgb = (48, 42, 56)
PAPER: Rgb = (253, 250, 243)
CHALK: Rgb = (232, 232, 222)
SLATE: Rgb = (50, 60, 62)
WHITE: Rgb = (255, 255, 255)


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """Return `first` with `share` (0 to 1) of `second` mixed in, channel by channel."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def palette(colour: str, style: str, moonlit: bool) -> dict[str, Rgb]:
    """Return the tones a drawing may ask for: body, dark, light, spot, ink and the fixed accents of its parts."""
    body = COLOUR_VALUES[colour]
    tones: dict[str, Rgb] = {
        "glass": (196, 230, 246),
        "lamp": (255, 232, 130),
        "wood": (126, 84, 54),
        "cream": (250, 238, 214),
        "stem": (70, 140, 66),
        "beak": (250, 166, 50),
        "blush": (246, 150, 150),
        "white": WHITE,
        "ink": INK,
    }
    dark = mix(body, (30, 20, 50), 0.30)
    light = mix(body, WHITE, 0.38)
    if colour == "white":
        dark, light = (214, 216, 228), WHITE
    if colour == "black":
        dark, light = (24, 22, 30), (86, 84, 98)
    spot = (222, 222, 232) if colour == "white" else WHITE
    contour = mix(body, (24, 16, 40), 0.62)
    if colour == "white":
        contour = (134, 138, 160)
    if style == "outline":
        contour = INK if colour in ("white", "yellow", "black") else mix(body, (16, 10, 30), 0.45)
        share = 0.06 if colour == "black" else 0.22
        body = dark = mix(body, WHITE, share)
        light = mix(body, WHITE, 0.3)
        tones = {name: mix(tone, WHITE, 0.55) for name, tone in tones.items()} | {"ink": INK}
    elif style == "pastel":
        share = 0.10 if colour == "black" else 0.26
        body, dark, light = (mix(tone, WHITE, share) for tone in (body, dark, light))
        contour = mix(body, (90, 80, 110), 0.45)
        tones = {name: mix(tone, WHITE, 0.22) for name, tone in tones.items()}
    elif style == "chalk":
        dark = mix(dark, body, 0.4)
        contour = CHALK
    if moonlit and style in ("flat", "pixel", "pastel"):
        contour = (214, 212, 240)
    eye = WHITE if colour == "black" else INK
    return tones | {"body": body, "dark": dark, "light": light, "spot": spot, "contour": contour, "eye": eye}


class Pen:
    """Draws shapes given in unit coordinates (0 to 1, y downward) on a transparent square."""

    def __init__(self, side: int, tones: dict[str, Rgb]) -> None:
        from PIL import Image, ImageDraw

        self.side = side
        self.tones = tones
        self.image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)

    def _scaled(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self.side, y * self.side) for x, y in points]

    def poly(self, points: Sequence[tuple[float, float]], tone: str) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._scaled(points), fill=(*self.tones[tone], 255))

    def blob(self, points: Sequence[tuple[float, float]], tone: str) -> None:
        """Fill the closed Catmull-Rom curve through the points."""
        self.poly(closed_curve(points), tone)

    def ellipse(self, x: float, y: float, rx: float, ry: float, tone: str) -> None:
        """Fill an ellipse around (x, y)."""
        s = self.side
        self._draw.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=(*self.tones[tone], 255))

    def box(self, left: float, top: float, right: float, bottom: float, tone: str, *, radius: float = 0.0) -> None:
        """Fill a rectangle with rounded corners."""
        s = self.side
        self._draw.rounded_rectangle(
            [left * s, top * s, right * s, bottom * s], radius=radius * s, fill=(*self.tones[tone], 255)
        )

    def line(self, points: Sequence[tuple[float, float]], width: float, tone: str) -> None:
        """Draw a stroke with round ends; `width` is a share of the square's side."""
        scaled = self._scaled(points)
        thick = max(1, round(width * self.side))
        self._draw.line(scaled, fill=(*self.tones[tone], 255), width=thick, joint="curve")
        for x, y in (scaled[0], scaled[-1]):
            r = thick / 2
            self._draw.ellipse([x - r, y - r, x + r, y + r], fill=(*self.tones[tone], 255))

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float, tone: str) -> None:
        """Draw a part of an ellipse; angles in degrees, clockwise from three o'clock."""
        angles = np.radians(np.linspace(start, end, 24))
        self.line([(x + rx * np.cos(a), y + ry * np.sin(a)) for a in angles], width, tone)


def closed_curve(points: Sequence[tuple[float, float]], steps: int = 10) -> list[tuple[float, float]]:
    """Return points along the closed Catmull-Rom spline through `points`."""
    p1 = np.asarray(points, dtype=np.float64)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    return [(float(x), float(y)) for x, y in curve.reshape(-1, 2)]


def contoured(image: Any, width: float, colour: Rgb) -> Any:
    """Return `image` above a copy of its silhouette that is `width` pixels wider and filled with `colour`."""
    from PIL import Image, ImageFilter

    alpha = image.getchannel("A")
    wide = alpha.filter(ImageFilter.GaussianBlur(width)).point(lambda v: 255 if v > 30 else 0)
    under = Image.new("RGBA", image.size, (*colour, 255))
    under.putalpha(wide)
    return Image.alpha_composite(under, image)


def averaged(image: Any, pixels: int) -> np.ndarray:
    """Return premultiplied float RGBA of shape (pixels, pixels, 4) in [0, 255], each the mean of a block."""
    reduced = image.convert("RGBa").reduce(image.width // pixels)
    return np.asarray(reduced, dtype=np.float32)


def grain(height: int, width: int, *, seed: int, unit: int = 1) -> np.ndarray:
    """Return slanted chalk strokes as floats of shape (height, width) around 0, about -1 to 1."""
    noise = np.random.default_rng(seed).standard_normal((height + 8, width + 8)).astype(np.float32)
    slanted = sum(np.roll(noise, (k, -k), (0, 1)) for k in range(3 * unit)) / np.sqrt(3.0 * unit)
    return np.clip(slanted[4 : height + 4, 4 : width + 4] * 0.5, -1, 1)


@functools.lru_cache(maxsize=20000)
def sprite(kind: str, colour: str, style: str, pixels: int, moonlit: bool, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one drawn object as (premultiplied colour, 255 - alpha), uint16 of shape (pixels, pixels, 3 and 1).

    `pixels` is the side; `unit` is one sixty-fourth of the picture's side in pixels: contours and blocks scale with it.
    """
    block = 2 * unit if style == "pixel" else 1
    cells = pixels // block
    scale = OVERSAMPLING * block
    pen = Pen(cells * scale, palette(colour, style, moonlit))
    DRAWERS[kind](pen)
    thick = {"flat": 0.75, "outline": 1.1, "pixel": 0.55, "pastel": 0.45, "chalk": 0.8}[style]
    if moonlit and style == "pixel":
        thick = 1.3
    drawn = contoured(pen.image, thick * unit * OVERSAMPLING, pen.tones["contour"])
    result = averaged(drawn, cells)
    if style == "pixel":
        alpha = result[..., 3:]
        solid = np.where(alpha > 110, 255.0, 0.0)
        colours = np.where(alpha > 0, result[..., :3] * 255.0 / np.maximum(alpha, 1e-3), 0.0)
        colours = np.clip(np.round(colours / 16.0) * 16.0, 0, 255)
        result = np.concatenate([colours * solid / 255.0, solid], axis=-1)
        result = result.repeat(block, 0).repeat(block, 1)
    elif style == "chalk":
        texture = 0.92 + 0.16 * grain(pixels, pixels, seed=pixels, unit=unit)[..., None]
        result = result * np.clip(texture, 0.7, 1.0)
    whole = np.clip(np.round(result), 0, 255).astype(np.uint16)
    return np.ascontiguousarray(whole[..., :3]), np.ascontiguousarray(255 - whole[..., 3:])


def paste(canvas: np.ndarray, drawn: tuple[np.ndarray, np.ndarray], left: int, top: int, *, mirrored: bool) -> None:
    """Lay a sprite over `canvas` (uint8, height x width x 3) in place; parts outside the canvas are cut off."""
    colour, rest = drawn
    if mirrored:
        colour, rest = colour[:, ::-1], rest[:, ::-1]
    height, width = canvas.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + colour.shape[1], width), min(top + colour.shape[0], height)
    if x1 <= x0 or y1 <= y0:
        return
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    part = canvas[y0:y1, x0:x1]
    part[...] = np.minimum(colour[inner] + (part * rest[inner] + 127) // 255, 255).astype(np.uint8)
