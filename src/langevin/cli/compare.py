"""`langevin compare`: two folders of pictures of the same prompts, with a verdict and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import InputError
from ..core.files import atomic_file
from ..evaluation.folders import Shown, read
from ..evaluation.pictures import Result, compare
from .evaluate import Eyes, asked, with_notes
from .grid import Axis
from .output import Place, free, writing
from .sheet import contact_sheet

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 4
"""Prompts on the sheet for each side: those at which it is most ahead."""


def run(
    first: str,
    second: str,
    *,
    prompts: str | None,
    category: str | None,
    against: str | None,
    output: str,
    eyes: Eyes,
) -> tuple[Result, Path]:
    """Return the differences with their verdicts, and the path of the contact sheet.

    Raises:
        InputError: for pictures that cannot be compared.
    """
    place = Place.of(output)
    sides = [asked(folder, prompts, category) for folder in (first, second)]
    for folder, pictures in zip((first, second), sides, strict=True):
        if not all(shown.prompt for shown in pictures):
            raise InputError(
                f"{folder} has pictures without prompts; give --prompts, or a text file beside each picture."
            )
    if {shown.prompt for shown in sides[0]} != {shown.prompt for shown in sides[1]}:
        raise InputError(f"{first} and {second} show different prompts; give --prompts with those that both show.")
    others = None if against is None else read(against)
    result, rows = compare(sides[0], sides[1], eyes.look(judged=True, against=others is not None), against=others)
    path = free(place.folder / f"{place.name or 'comparison'}.png")
    sheet = drawn(sides, (first, second), next(iter(rows.values())))
    with writing(path, "choose another --output"), atomic_file(path) as partial:
        sheet.save(partial, format="PNG")
    return with_notes(result, sides[0], eyes), path


def drawn(sides: Sequence[Sequence[Shown]], names: Sequence[str], rows: Sequence[tuple[str, float, float]]) -> Image:
    """Return the contact sheet: the prompts at which each side is most ahead, A's first, a picture of each side.

    Args:
        rows: (prompt, score of A, score of B).
    """
    ranked = sorted(rows, key=lambda row: row[2] - row[1])
    chosen = ranked if len(ranked) <= 2 * SHOWN else [*ranked[:SHOWN], *ranked[-SHOWN:]]
    first = [{str(s.prompt): s for s in reversed(pictures)} for pictures in sides]
    images = [side[prompt].open() for side in first for prompt, _, _ in chosen]
    labels = tuple(f"{prompt} ({one:.3g}, {two:.3g})" for prompt, one, two in chosen)
    heads = tuple(f"{letter}: {Path(name).name}" for letter, name in zip("AB", names, strict=True))
    return contact_sheet(images, [Axis("", heads, heads), Axis("prompt", labels, labels)])
