"""What all measured effects share: files that a recipe reads, a training, shares with intervals, folders of results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.files import atomic_write
from ...core.images import grid
from .. import GUIDANCE_SCALE, STEPS, model_folder
from ..checker import look
from ..scores import generate, wilson

BASE: dict[str, Any] = {
    "resolution": 64,
    "center_crop": True,
    "cache_latents": True,
    "train_batch_size": 8,
    "mixed_precision": "no",
    "report_to": "none",
    "seed": 0,
}
"""Flags of every effect, unless it says otherwise: the shipped model's pictures, in float32."""


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


def trained(recipe: str, data: Mapping[str, Any], flags: Mapping[str, Any], output: Path) -> tuple[Path, float]:
    """Train a recipe by its flags alone, on the shipped model where it begins with one and the data names no other.

    Args:
        recipe: a name in `RECIPES`.
        data: flags that name what to learn from.
        flags: the other ones.
        output: folder of the result.

    Returns:
        The folder, and the minutes that it took.
    """
    from ...training.recipes import RECIPES

    settings, train = RECIPES[recipe].loaded()
    begun = time.monotonic()
    name = "pretrained_model_name_or_path"
    base = {name: str(model_folder())} if hasattr(settings, name) else {}
    result = train(settings(**{**base, "output_dir": str(output), **data, **flags}))
    return result, round((time.monotonic() - begun) / 60, 1)


def shipped() -> Any:
    """Return the shipped pipeline."""
    from ...pipelines.stable_diffusion import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(model_folder())


def drawn(pipe: Any, texts: Sequence[str], seed: int = 0) -> list[Any]:
    """Return one picture per prompt, with the guidance and the steps of the shipped model and a seed of its own."""
    return generate(pipe, texts, steps=STEPS, guidance_scale=GUIDANCE_SCALE, batch=25, seed=seed)


def shows(pictures: Sequence[Any], kind: str, colours: Sequence[str]) -> list[bool]:
    """Tell of every picture whether the checker sees a thing of a kind in it, in the colour that belongs to it."""
    sights = look(pictures)
    return [
        any(found.kind == kind and found.colour == colour for found in sight.found)
        for sight, colour in zip(sights, colours, strict=True)
    ]
