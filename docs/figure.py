"""Draw docs/assets/architecture.svg: the packages, what lives in each, and which imports which, read from the sources.

An arrow stands for imports that no longer chain of arrows implies. Run from the root of the repository.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from tests.architecture.test_imports import LEVELS, place
from tests.architecture.tree import PACKAGE, imports, modules

TARGET = Path(__file__).parent / "assets" / "architecture.svg"
ROOMS = {
    "cli": (2, "one file per command"),
    "picturebook": (1, "a small world", "and the model trained on it"),
    "compat": (4, "the name diffusers", "for existing scripts"),
    "evaluation": (0, "what samplers and", "pictures are worth"),
    "pipelines": (2, "tasks and their signatures", "inputs, loading, saving"),
    "training": (4.3, "the trainer, recipes", "exact resume"),
    "families": (2, "Conditioning", "LatentSpace, Denoiser"),
    "schedulers": (1, "documented options", "over diffusion"),
    "optimization": (4.55, "learning rates", ""),
    "adapters": (3.3, "LoRA, learned words", "IP-Adapter, the stack"),
    "weights": (3.75, "layouts, dialects", "single files, inspect"),
    "models": (3.75, "one file per", "architecture"),
    "diffusion": (0.8, "Grid, solvers, Table", "Guidance, the loop"),
    "prompts": (2.15, "syntaxes, weights", "long prompts"),
    "nn": (3.3, "attention and the", "layers models share"),
    "core": (2.35, "configurations, files, hub, random streams, errors, pictures"),
}
"""Package -> its column, counted from the left, and what it holds."""
WIDE = {"cli": 5.6, "pipelines": 3.4, "diffusion": 1.4, "nn": 1.4, "core": 5.4}
"""Package -> how many boxes it is wide, so that arrows to its neighbours fall straight."""
ROW, COLUMN, BOX, HEIGHT, MARGIN = 92, 200, 172, 62, 24
COLOURS = ("#e8eef7", "#e9f3ea", "#f7f0e3", "#f5e8ea", "#eeeaf6")


def edges() -> set[tuple[str, str]]:
    """Return (importer, imported) for every pair of packages of the figure."""
    found = ((place(i.importer), place(i.target)) for i in imports(modules()) if i.target.split(".")[0] == PACKAGE)
    return {(a, b) for a, b in found if a != b and a in ROOMS and b in ROOMS}


def reduced(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs that no chain of other pairs implies: the transitive reduction of an acyclic graph."""

    def reaches(a: str, b: str) -> bool:
        return any(middle == b or reaches(middle, b) for start, middle in pairs if start == a)

    def implied(a: str, b: str) -> bool:
        return any(middle != b and reaches(middle, b) for start, middle in pairs if start == a)

    return sorted(pair for pair in pairs if not implied(*pair))


def rows() -> dict[str, int]:
    """Return package -> its row, the highest level at the top."""
    levels = sorted({LEVELS[name] for name in ROOMS}, reverse=True)
    return {name: levels.index(LEVELS[name]) for name in ROOMS}


def towards(x: float, width: float, other: float) -> float:
    """Return where on a box an arrow ends whose other box has its middle at `other`."""
    middle, reach = x + width / 2, width / 2 - 40 if width > BOX else 20
    return middle + max(-reach, min(reach, other - middle))


def figure() -> str:
    """Return the figure as SVG."""
    row = rows()
    boxes = {}
    for name, (column, *_) in ROOMS.items():
        width = BOX * WIDE.get(name, 1)
        boxes[name] = (MARGIN + column * COLUMN + BOX / 2 - width / 2, MARGIN + row[name] * ROW, width)
    width = max(x + w for x, _, w in boxes.values()) + MARGIN
    height = max(y for _, y, _ in boxes.values()) + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#8a93a3"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    for above, below in reduced(edges()):
        (x0, y0, w0), (x1, y1, w1) = boxes[above], boxes[below]
        start, end = towards(x0, w0, x1 + w1 / 2), towards(x1, w1, x0 + w0 / 2)
        y0, bend = y0 + HEIGHT, (y1 - y0 - HEIGHT) / 2
        lines.append(
            f'<path d="M{start:g} {y0:g}C{start:g} {y0 + bend:g} {end:g} {y1 - bend:g} {end:g} {y1 - 1:g}" fill="none" '
            'stroke="#8a93a3" stroke-width="1.4" marker-end="url(#tip)"/>'
        )
    for name, (_, *held) in ROOMS.items():
        x, y, w = boxes[name]
        colour = COLOURS[row[name] % len(COLOURS)]
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{HEIGHT}" rx="7" fill="{colour}" stroke="#5b6475"/>'
        )
        lines.append(
            f'<text x="{x + w / 2:g}" y="{y + 21:g}" font-size="14" font-weight="bold" fill="#1c2330">{name}</text>'
        )
        for k, text in enumerate(held):
            lines.append(
                f'<text x="{x + w / 2:g}" y="{y + 38 + 15 * k:g}" font-size="11" fill="#3a4252">{escape(text)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    TARGET.write_text(figure(), encoding="utf-8")
    print(f"Written to {TARGET}")
