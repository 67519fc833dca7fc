"""The sixteen things of the picturebook, each drawn on the unit square (0 to 1, y downward) with a pen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def _star_points(x: float, y: float, outer: float, inner: float, tips: int) -> list[tuple[float, float]]:
    """Return the corners of a star with `tips` points, the first one upward."""
    points = []
    for k in range(2 * tips):
        radius, angle = (outer, inner)[k % 2], math.pi * k / tips - math.pi / 2
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def _face(pen: Any, x: float, y: float, *, gap: float, eye: float = 0.035, blush: bool = True) -> None:
    """Draw two eyes, a smile between them and two rosy cheeks."""
    for side in (-1, 1):
        pen.ellipse(x + side * gap, y, eye, eye * 1.25, "eye")
        if blush:
            pen.ellipse(x + side * gap * 1.75, y + 0.075, eye * 1.1, eye * 0.75, "blush")
    pen.arc(x, y + 0.02, gap * 0.55, 0.075, 20, 160, 0.03, "eye")


def house(pen: Any) -> None:
    """A cottage with a pitched roof, a chimney, a door and two windows."""
    pen.box(0.68, 0.10, 0.82, 0.40, "dark")
    pen.box(0.14, 0.42, 0.86, 0.95, "body", radius=0.02)
    pen.poly([(0.03, 0.50), (0.50, 0.05), (0.97, 0.50)], "dark")
    pen.poly([(0.15, 0.46), (0.50, 0.12), (0.85, 0.46)], "body")
    pen.line([(0.06, 0.50), (0.94, 0.50)], 0.045, "dark")
    pen.box(0.42, 0.64, 0.60, 0.95, "wood", radius=0.05)
    pen.ellipse(0.56, 0.80, 0.018, 0.018, "lamp")
    for left in (0.21, 0.66):
        pen.box(left, 0.60, left + 0.14, 0.76, "lamp", radius=0.02)
        pen.line([(left + 0.07, 0.61), (left + 0.07, 0.75)], 0.02, "wood")
    pen.ellipse(0.50, 0.36, 0.065, 0.065, "lamp")


def tree(pen: Any) -> None:
    """A round, leafy crown on a short trunk."""
    pen.poly([(0.43, 0.60), (0.57, 0.60), (0.62, 0.96), (0.38, 0.96)], "wood")
    for x, y, r in ((0.27, 0.47, 0.23), (0.73, 0.47, 0.23), (0.50, 0.30, 0.27), (0.50, 0.52, 0.24)):
        pen.ellipse(x, y, r, r, "body")
    for x, y in ((0.35, 0.25), (0.20, 0.44), (0.58, 0.42), (0.64, 0.22), (0.42, 0.55), (0.77, 0.52)):
        pen.ellipse(x, y, 0.055, 0.045, "light")


def sun(pen: Any) -> None:
    """A smiling disc with twelve rays."""
    for k in range(12):
        angle = 2 * math.pi * k / 12
        tip = (0.5 + 0.48 * math.cos(angle), 0.5 + 0.48 * math.sin(angle))
        foot = [(0.5 + 0.34 * math.cos(angle + d), 0.5 + 0.34 * math.sin(angle + d)) for d in (-0.2, 0.2)]
        pen.poly([tip, *foot], "body")
    pen.ellipse(0.5, 0.5, 0.345, 0.345, "dark")
    pen.ellipse(0.5, 0.5, 0.31, 0.31, "body")
    _face(pen, 0.5, 0.46, gap=0.12)


def moon(pen: Any) -> None:
    """A crescent with a sleeping eye."""
    outer = [(0.56 + 0.46 * math.cos(a), 0.5 + 0.46 * math.sin(a)) for a in _angles(-58, -302, 40)]
    inner = [(0.76 + 0.39 * math.cos(a), 0.5 + 0.39 * math.sin(a)) for a in _angles(-264, -96, 40)]
    pen.poly(outer + inner, "body")
    for x, y, r in ((0.30, 0.72, 0.045), (0.46, 0.86, 0.03), (0.36, 0.22, 0.035)):
        pen.ellipse(x, y, r, r, "dark")
    pen.arc(0.245, 0.46, 0.06, 0.05, 10, 170, 0.03, "eye")
    pen.ellipse(0.20, 0.585, 0.04, 0.028, "blush")


def _angles(start: float, end: float, count: int) -> list[float]:
    """Return `count` angles in radians, evenly from `start` to `end` degrees."""
    return [math.radians(start + (end - start) * k / (count - 1)) for k in range(count)]


def star(pen: Any) -> None:
    """A five-pointed star with a small face."""
    pen.poly(_star_points(0.5, 0.54, 0.50, 0.235, 5), "body")
    pen.poly([(0.5, 0.04), (0.5, 0.54), *_star_points(0.5, 0.54, 0.50, 0.235, 5)[9:]], "light")
    _face(pen, 0.5, 0.52, gap=0.09, eye=0.032, blush=False)


def cloud(pen: Any) -> None:
    """A puffy cloud with a flat base."""
    pen.box(0.06, 0.48, 0.94, 0.78, "body", radius=0.15)
    for x, y, r in ((0.24, 0.55, 0.19), (0.46, 0.41, 0.24), (0.70, 0.50, 0.20), (0.82, 0.61, 0.15)):
        pen.ellipse(x, y, r, r, "body")
    for x, y, r in ((0.40, 0.33, 0.10), (0.66, 0.43, 0.075), (0.20, 0.50, 0.065)):
        pen.ellipse(x, y, r, r * 0.8, "light")
    _face(pen, 0.49, 0.58, gap=0.11, eye=0.03)


def boat(pen: Any) -> None:
    """A small sailing boat: hull, mast, a large and a small sail, a pennant."""
    pen.line([(0.47, 0.66), (0.47, 0.06)], 0.045, "wood")
    pen.poly([(0.52, 0.10), (0.93, 0.60), (0.52, 0.60)], "body")
    pen.poly([(0.52, 0.40), (0.77, 0.40), (0.85, 0.50), (0.52, 0.50)], "light")
    pen.poly([(0.42, 0.20), (0.42, 0.60), (0.13, 0.60)], "cream")
    pen.blob([(0.04, 0.67), (0.5, 0.67), (0.96, 0.67), (0.84, 0.88), (0.70, 0.94), (0.30, 0.94), (0.16, 0.88)], "body")
    pen.line([(0.09, 0.72), (0.91, 0.72)], 0.05, "dark")
    for x in (0.34, 0.50, 0.66):
        pen.ellipse(x, 0.83, 0.035, 0.035, "spot")


def fish(pen: Any) -> None:
    """A round fish that swims to the left, with fins, stripes and a big eye."""
    pen.blob([(0.70, 0.50), (0.86, 0.28), (0.97, 0.24), (0.92, 0.50), (0.97, 0.76), (0.86, 0.72)], "dark")
    pen.blob([(0.36, 0.30), (0.48, 0.12), (0.66, 0.18), (0.62, 0.34)], "dark")
    pen.blob(
        [
            (0.03, 0.50),
            (0.16, 0.31),
            (0.40, 0.23),
            (0.64, 0.34),
            (0.80, 0.50),
            (0.64, 0.67),
            (0.40, 0.77),
            (0.16, 0.69),
        ],
        "body",
    )
    pen.arc(0.44, 0.50, 0.10, 0.21, -65, 65, 0.045, "light")
    pen.arc(0.57, 0.50, 0.08, 0.15, -65, 65, 0.045, "light")
    pen.blob([(0.38, 0.55), (0.52, 0.60), (0.50, 0.72), (0.40, 0.66)], "dark")
    pen.ellipse(0.22, 0.44, 0.085, 0.085, "white")
    pen.ellipse(0.205, 0.445, 0.048, 0.048, "ink")
    pen.arc(0.10, 0.55, 0.07, 0.05, 20, 120, 0.025, "eye")


def car(pen: Any) -> None:
    """A small rounded car that drives to the left."""
    pen.blob([(0.22, 0.52), (0.32, 0.24), (0.50, 0.19), (0.70, 0.25), (0.82, 0.52), (0.52, 0.58)], "body")
    pen.poly([(0.31, 0.48), (0.37, 0.30), (0.49, 0.27), (0.49, 0.48)], "glass")
    pen.poly([(0.54, 0.48), (0.54, 0.27), (0.66, 0.31), (0.73, 0.48)], "glass")
    pen.box(0.03, 0.47, 0.97, 0.74, "body", radius=0.12)
    pen.line([(0.10, 0.64), (0.90, 0.64)], 0.04, "dark")
    pen.ellipse(0.085, 0.56, 0.045, 0.05, "lamp")
    for x in (0.27, 0.73):
        pen.ellipse(x, 0.75, 0.14, 0.14, "ink")
        pen.ellipse(x, 0.75, 0.06, 0.06, "cream")


def flower(pen: Any) -> None:
    """Six round petals on a stem with two leaves."""
    pen.line([(0.5, 0.50), (0.5, 0.95)], 0.06, "stem")
    pen.blob([(0.5, 0.88), (0.62, 0.72), (0.82, 0.72), (0.70, 0.86)], "stem")
    pen.blob([(0.5, 0.92), (0.38, 0.76), (0.18, 0.76), (0.30, 0.90)], "stem")
    for k in range(6):
        angle = math.pi * (k / 3 + 1 / 6)
        pen.ellipse(0.5 + 0.21 * math.cos(angle), 0.36 + 0.21 * math.sin(angle), 0.155, 0.155, "body")
    for k in range(6):
        angle = math.pi * (k / 3 + 1 / 6)
        pen.ellipse(0.5 + 0.24 * math.cos(angle), 0.36 + 0.24 * math.sin(angle), 0.05, 0.05, "light")
    pen.ellipse(0.5, 0.36, 0.115, 0.115, "wood")
    pen.ellipse(0.5, 0.355, 0.095, 0.095, "lamp")


def mushroom(pen: Any) -> None:
    """A wide cap with dots on a pale stem."""
    pen.blob([(0.36, 0.50), (0.64, 0.50), (0.64, 0.76), (0.70, 0.95), (0.30, 0.95), (0.36, 0.76)], "cream")
    pen.blob(
        [
            (0.03, 0.56),
            (0.10, 0.32),
            (0.30, 0.13),
            (0.50, 0.08),
            (0.70, 0.13),
            (0.90, 0.32),
            (0.97, 0.56),
            (0.50, 0.62),
        ],
        "body",
    )
    pen.arc(0.5, 0.40, 0.42, 0.20, 25, 155, 0.04, "dark")
    for x, y, r in ((0.50, 0.23, 0.075), (0.26, 0.36, 0.07), (0.74, 0.36, 0.07), (0.50, 0.45, 0.06)):
        pen.ellipse(x, y, r, r * 0.9, "spot")
    for x in (0.43, 0.57):
        pen.ellipse(x, 0.73, 0.025, 0.032, "ink")
    pen.arc(0.50, 0.77, 0.04, 0.04, 20, 160, 0.022, "ink")


def cat(pen: Any) -> None:
    """A sitting cat with pointed ears, whiskers and a curled tail."""
    pen.line([(0.66, 0.86), (0.82, 0.87), (0.91, 0.78), (0.91, 0.64), (0.85, 0.56)], 0.10, "body")
    pen.blob([(0.50, 0.50), (0.68, 0.62), (0.76, 0.86), (0.66, 0.96), (0.34, 0.96), (0.24, 0.86), (0.32, 0.62)], "body")
    pen.ellipse(0.50, 0.80, 0.13, 0.14, "light")
    for side in (-1, 1):
        pen.poly([(0.5 + side * 0.05, 0.22), (0.5 + side * 0.31, 0.02), (0.5 + side * 0.34, 0.36)], "body")
        pen.poly([(0.5 + side * 0.17, 0.20), (0.5 + side * 0.27, 0.11), (0.5 + side * 0.28, 0.26)], "blush")
        pen.ellipse(0.5 + side * 0.10, 0.93, 0.075, 0.045, "dark")
    pen.ellipse(0.5, 0.36, 0.34, 0.26, "body")
    for side in (-1, 1):
        pen.ellipse(0.5 + side * 0.145, 0.34, 0.062, 0.075, "white")
        pen.ellipse(0.5 + side * 0.135, 0.345, 0.04, 0.058, "ink")
        pen.line([(0.5 + side * 0.20, 0.46), (0.5 + side * 0.36, 0.44)], 0.016, "eye")
    pen.poly([(0.46, 0.43), (0.54, 0.43), (0.50, 0.48)], "blush")


def bird(pen: Any) -> None:
    """A plump bird that looks to the left."""
    for x in (0.44, 0.56):
        pen.line([(x, 0.76), (x, 0.93), (x - 0.07, 0.94)], 0.035, "beak")
    pen.poly([(0.66, 0.46), (0.97, 0.24), (0.96, 0.40), (0.88, 0.62)], "dark")
    pen.blob(
        [
            (0.15, 0.34),
            (0.24, 0.16),
            (0.42, 0.12),
            (0.55, 0.26),
            (0.74, 0.38),
            (0.84, 0.56),
            (0.68, 0.76),
            (0.42, 0.81),
            (0.21, 0.66),
        ],
        "body",
    )
    pen.blob([(0.24, 0.56), (0.38, 0.52), (0.46, 0.68), (0.40, 0.78), (0.27, 0.70)], "light")
    pen.blob([(0.48, 0.44), (0.68, 0.42), (0.84, 0.52), (0.66, 0.66), (0.50, 0.60)], "dark")
    pen.poly([(0.17, 0.30), (0.02, 0.38), (0.19, 0.44)], "beak")
    pen.ellipse(0.32, 0.30, 0.065, 0.065, "white")
    pen.ellipse(0.31, 0.305, 0.038, 0.038, "ink")


def heart(pen: Any) -> None:
    """A heart with a glint."""
    points = []
    for a in _angles(0, 356, 60):
        x = 16 * math.sin(a) ** 3
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        points.append((0.5 + x * 0.0285, 0.455 - y * 0.0295))
    pen.poly(points, "body")
    pen.arc(0.30, 0.33, 0.13, 0.14, 175, 265, 0.055, "light")
    pen.ellipse(0.185, 0.45, 0.028, 0.028, "light")


def balloon(pen: Any) -> None:
    """A party balloon with a knot and a wavy string."""
    string = [(0.5 + 0.05 * math.sin(k * 0.9), 0.72 + 0.026 * k) for k in range(10)]
    pen.line(string, 0.03, "ink" if pen.tones["contour"] != (214, 212, 240) else "cream")
    pen.poly([(0.5, 0.66), (0.58, 0.77), (0.42, 0.77)], "dark")
    pen.blob(
        [(0.5, 0.03), (0.72, 0.12), (0.81, 0.34), (0.70, 0.57), (0.5, 0.71), (0.30, 0.57), (0.19, 0.34), (0.28, 0.12)],
        "body",
    )
    pen.arc(0.46, 0.33, 0.17, 0.20, 185, 255, 0.055, "light")


def kite(pen: Any) -> None:
    """A two-toned diamond kite with a tail of bows."""
    tail = [(0.5 + 0.10 * math.sin(k * 0.8), 0.68 + 0.031 * k) for k in range(10)]
    pen.line(tail, 0.03, "wood")
    for x, y in ((tail[3][0], tail[3][1]), (tail[8][0], tail[8][1])):
        pen.poly([(x, y), (x - 0.09, y - 0.05), (x - 0.09, y + 0.05)], "body")
        pen.poly([(x, y), (x + 0.09, y - 0.05), (x + 0.09, y + 0.05)], "body")
    top, right, foot, left, middle = (0.5, 0.02), (0.88, 0.32), (0.5, 0.74), (0.12, 0.32), (0.5, 0.32)
    pen.poly([top, right, foot, left], "body")
    pen.poly([top, middle, right], "light")
    pen.poly([left, middle, foot], "dark")
    pen.line([top, foot], 0.025, "cream")
    pen.line([left, right], 0.025, "cream")


DRAWERS: dict[str, Callable[[Any], None]] = {
    "house": house,
    "tree": tree,
    "sun": sun,
    "moon": moon,
    "star": star,
    "cloud": cloud,
    "boat": boat,
    "fish": fish,
    "car": car,
    "flower": flower,
    "mushroom": mushroom,
    "cat": cat,
    "bird": bird,
    "heart": heart,
    "balloon": balloon,
    "kite": kite,
}
