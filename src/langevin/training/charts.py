"""Curves as SVG, without a package that draws: lines over steps, with axes, a legend, and colours from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]
Place = Callable[[float], float]
"""From a step or a value to where it is drawn."""
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 12, 34
"""Margins of the plot within the picture, for the labels."""
MOST = 600
"""Points of a line; longer ones are thinned."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        points: (step, value), by step; values that are not finite are left out.
        name: for the legend.
        colour: as CSS takes it.
        faint: drawn thin and pale, as raw values behind a smoothed line are.
        dots: mark every point, with its value as a tooltip.
    """

    points: Points
    name: str
    colour: str
    faint: bool = False
    dots: bool = False


def smoothed(points: Points, share: float = 0.03) -> list[tuple[float, float]]:
    """Return an exponential moving average as long as a share of the points, ten at least, of those that are finite."""
    found = finite(points)
    keep = 1 - 1 / max(10.0, share * len(found))
    total = weight = 0.0
    result = []
    for step, value in found:
        total, weight = keep * total + value, keep * weight + 1
        result.append((step, total / weight))
    return result


def finite(points: Points) -> list[tuple[float, float]]:
    """Return the points whose values are finite."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def thinned(points: Points, most: int = MOST) -> list[tuple[float, float]]:
    """Return at most about so many points; of every stretch the lowest and the highest stay, so that peaks do."""
    points = list(points)
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    found = []
    for first in range(0, len(points), size):
        stretch = points[first : first + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        found += sorted(ends)
    return found


def number(value: float) -> str:
    """Return a number as a label shows it."""
    text = f"{value:.4g}"
    if "e" in text:
        head, _, power = text.partition("e")
        return f"{head}e{int(power)}"
    return text


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, at most about so many."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """Return round numbers of a logarithmic axis, whose ends are logarithms: powers of ten, or parts of them."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    parts = (1,) if high - low > 2 else (1, 2, 5)
    found = [math.log10(part) + k for k in exponents for part in parts]
    return [value for value in found if low - 1e-9 <= value <= high + 1e-9]


def span(lines: Sequence[Line], *, zero: bool) -> tuple[float, float]:
    """Return the range of values that a chart shows; of faint lines the outermost hundredth at both ends is cut off."""
    values: list[float] = []
    for line in lines:
        own = sorted(value for _, value in line.points)
        cut = len(own) // 100 if line.faint else 0
        values += own[cut : len(own) - cut]
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        room = abs(high) / 10 or 1.0
        return low - room, high + room
    room = 0.05 * (high - low)
    return low - (0 if zero and low == 0 else room), high + room


def chart(lines: Sequence[Line], *, label: str, log: bool = False, zero: bool = False) -> str:
    """Return an SVG element, or a sentence when there is nothing to draw.

    Args:
        label: what it shows, for those who cannot see it.
        log: a logarithmic axis; values that are not above 0 are left out.
        zero: the axis of values begins at 0.
    """
    kept = [Line(finite(line.points), line.name, line.colour, line.faint, line.dots) for line in lines]
    if log:
        kept = [
            Line([(s, math.log10(v)) for s, v in line.points if v > 0], line.name, line.colour, line.faint, line.dots)
            for line in kept
        ]
    kept = [line for line in kept if line.points]
    if not kept:
        return '<p class="none">No values.</p>'
    low, high = span(kept, zero=zero and not log)
    steps = [step for line in kept for step, _ in line.points]
    first, last = min(steps), max(steps)
    last = last if last > first else first + 1

    def across(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        part = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    marks = powers(low, high) if log else ticks(low, high)
    for value in marks or [low, high]:
        y, text = down(value), number(10**value if log else value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>')
    parts.append(f'<text x="{LEFT - 8}" y="{HEIGHT - 12}" text-anchor="end">step</text>')
    for step in ticks(first, last):
        if step == int(step):
            parts.append(f'<text x="{across(step)}" y="{HEIGHT - 12}" text-anchor="middle">{int(step)}</text>')
    for line in kept:
        parts += drawn(line, across, down, log=log)
    return "".join(parts) + "</svg>" + legend(kept)


def drawn(line: Line, across: Place, down: Place, *, log: bool) -> list[str]:
    """Return the elements of a line."""
    places = [(across(step), down(value)) for step, value in thinned(line.points)]
    path = " ".join(f"{x:g},{y:g}" for x, y in places)
    style = f'class="{"faint" if line.faint else "line"}" style="stroke:{line.colour}"'
    parts = [f'<polyline {style} points="{path}"/>']
    for step, value in line.points if line.dots or len(line.points) == 1 else ():
        said = escape(f"{line.name}, step {int(step)}: {number(10**value if log else value)}")
        dot = f'<circle cx="{across(step):g}" cy="{down(value):g}" r="3" style="fill:{line.colour}">'
        parts.append(f"{dot}<title>{said}</title></circle>")
    return parts


def legend(lines: Sequence[Line]) -> str:
    """Return the names of lines beside their colours; a single line needs none."""
    if len(lines) < 2:
        return ""
    keys = []
    for line in lines:
        style = f"background:{line.colour}{';opacity:.35' if line.faint else ''}"
        keys.append(f'<span><i style="{style}"></i>{escape(line.name)}</span>')
    return f'<p class="legend">{"".join(keys)}</p>'
