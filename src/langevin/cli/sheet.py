"""A contact sheet with its axes: columns, rows, and blocks below each other, each with its value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .grid import Axis

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 128
"""Pixels per side that a picture at least gets, so that labels fit; smaller ones are enlarged by whole numbers."""
GAP = 6
INK, GREY = "black", (96, 96, 96)


def contact_sheet(images: Sequence[Image], axes: Sequence[Axis]) -> Image:
    """Return the pictures of all combinations, the last axis fastest, as one picture with labels.

    The first axis runs to the right, the second down, the third over blocks.
    """
    from PIL import Image, ImageDraw, ImageFont

    images = enlarged(images)
    wide, high = (max(side) for side in zip(*(image.size for image in images), strict=True))
    size = max(14, min(wide, high) // 16)
    font = ImageFont.load_default(size)
    labels = [readable(axis, font) for axis in axes] + [[""]] * (3 - len(axes))
    names = [axis.name for axis in axes] + [""] * (3 - len(axes))
    columns = [wrapped(text, wide, font) for text in labels[0]]
    rows = [wrapped(text, 2 * CELL, font) for text in labels[1]]
    line = math.ceil(size * 1.3)
    left = max(measure(text, font) for text in [*rows, names[1]]) + 2 * GAP if names[1] else GAP
    top = line + max(text.count("\n") + 1 for text in columns) * line + GAP
    blocks = [wrapped(f"{names[2]} = {text}", left + len(columns) * (wide + GAP), font) for text in labels[2]]
    title = max(text.count("\n") + 1 for text in blocks) * line + 2 * GAP if names[2] else GAP
    block = title + top + len(rows) * (high + GAP)
    sheet = Image.new("RGB", (left + len(columns) * (wide + GAP), len(blocks) * block), "white")
    pen = ImageDraw.Draw(sheet)

    def write(x: float, y: float, text: str, colour: Any, anchor: str, align: str) -> None:
        pen.multiline_text((x, y), text, fill=colour, font=font, anchor=anchor, align=align, spacing=line - size)

    for b, text in enumerate(blocks):
        above = b * block + title
        if names[2]:
            write(GAP, b * block + GAP, text, INK, "la", "left")
        write(left + len(columns) * (wide + GAP) / 2, above, names[0], GREY, "ma", "center")
        write(left - GAP, above + top - GAP, names[1], GREY, "rd", "right")
        for c, label in enumerate(columns):
            write(left + c * (wide + GAP) + wide / 2, above + top - GAP, label, INK, "md", "center")
        for r, label in enumerate(rows):
            write(left - GAP, above + top + r * (high + GAP) + high / 2, label, INK, "rm", "right")
            for c in range(len(columns)):
                image = images[(c * len(rows) + r) * len(blocks) + b]
                sheet.paste(image, (left + c * (wide + GAP), above + top + r * (high + GAP)))
    return sheet


def enlarged(images: Sequence[Image]) -> list[Image]:
    """Return pictures whose shorter side has at least `CELL` pixels, without any smoothing."""
    times = max(1, math.ceil(CELL / min(min(image.size) for image in images)))
    return [image.convert("RGB").resize((image.width * times, image.height * times), 0) for image in images]


def readable(axis: Axis, font: Any) -> list[str]:
    """Return an axis's labels; those that the font cannot write become the name and a number."""
    unknown = bytes(font.getmask("\uffff"))

    def known(text: str) -> bool:
        return all(sign.isascii() or bytes(font.getmask(sign)) != unknown for sign in text)

    return [text if known(text) else f"{axis.name} {k}" for k, text in enumerate(axis.labels, 1)]


def measure(text: str, font: Any) -> int:
    """Return the width in pixels of the longest line."""
    return max(math.ceil(font.getlength(line)) for line in text.split("\n"))


def wrapped(text: str, width: int, font: Any) -> str:
    """Return a text in lines of at most `width` pixels, cut between words, and within words that are longer."""
    lines = [""]
    for word in text.split():
        while font.getlength(word) > width:
            fits = next(k for k in range(len(word), 0, -1) if k == 1 or font.getlength(word[:k]) <= width)
            lines, word = [*lines, word[:fits]], word[fits:]
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return "\n".join(line for line in lines if line)
