"""What all measured effects share: the files that a recipe reads, shares with intervals, and the folder of the result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.files import atomic_write
from ...core.images import grid
from ..scores import wilson


@dataclass(frozen=True)
class Share:
    """How many of `count` pictures do what they should, in percent with a 95 % interval.

    Attributes:
        goal: the percentage to reach; None where there is none.
    """

    name: str
    count: int
    percent: float
    low: float
    high: float
    goal: float | None = None


def share(name: str, flags: Sequence[bool], goal: float | None = None) -> Share:
    """Count flags."""
    return Share(name, len(flags), 100 * sum(flags) / len(flags), *wilson(sum(flags), len(flags)), goal)


@dataclass
class Effect:
    """What a recipe achieved.

    Attributes:
        name: of the recipe.
        shares: counted pictures.
        figures: other numbers, such as distances, bytes and minutes.
        flags: the settings that the recipe was trained with.
        pictures: rows of pictures to look at, by name.
    """

    name: str
    shares: list[Share]
    figures: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, list[Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `effect.json`, and every row of pictures as `NAME.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        told = asdict(self)
        del told["pictures"]
        atomic_write(folder / "effect.json", json.dumps(told, indent=2, default=str) + "\n")
        for name, row in self.pictures.items():
            columns = min(len(row), 10)
            rows = len(row) // columns
            grid(row[: rows * columns], rows=rows, cols=columns).save(folder / f"{name}.png")


def write_pictures(folder: Path, pictures: Iterable[np.ndarray], columns: Iterable[Mapping[str, Any]] = ()) -> Path:
    """Write pictures, uint8 (height, width, 3), and their columns as a folder that the recipes read.

    Args:
        columns: one mapping per picture, such as {"text": caption}; none leaves pictures alone.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, picture in enumerate(pictures):
        names.append(f"{number:05d}.png")
        Image.fromarray(picture).save(folder / names[-1])
    lines = [json.dumps({"file_name": name, **row}) for name, row in zip(names, columns, strict=False)]
    if lines:
        atomic_write(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    return folder
