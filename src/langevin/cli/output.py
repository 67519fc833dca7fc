"""Where pictures go: names that say what is in the file, and no file lost."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.files import atomic_file
from .metadata import chunks

if TYPE_CHECKING:
    from PIL.Image import Image


def slug(text: str, limit: int = 60) -> str:
    """Return `text` as part of a file name: words of any script joined by hyphens, cut at a word where possible."""
    joined = "-".join(re.findall(r"\w+", text.casefold()))
    if len(joined) > limit:
        joined = joined[:limit].rsplit("-", 1)[0]
    return joined or "picture"


def free(path: Path) -> Path:
    """Return `path`, or the first of NAME-2, NAME-3, ... that no file has."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return candidate


def stem(output: str) -> tuple[Path, str | None]:
    """Split `--output` into the folder and the file's name without suffix (None: to be made from prompt and seed).

    Raises:
        InputError: for a file that is not a PNG.
    """
    path = Path(output).expanduser()
    if path.suffix.lower() == ".png" and not path.is_dir():
        return path.parent, path.stem
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"):
        raise InputError(
            f"--output {output}: pictures are written as PNG, which keeps their parameters; use {path.stem}.png."
        )
    return path, None


def write(images: list[Image], facts: list[dict[str, Any]], output: str) -> list[Path]:
    """Write the pictures, and a contact sheet when there are several; return the paths, the sheet's last.

    Args:
        facts: the parameters of each picture, written into its file.

    Raises:
        InputError: when the folder cannot be written.
    """
    folder, name = stem(output)
    base = name or slug(facts[0].get("prompt") or facts[0]["pipeline"])
    several = len(images) > 1
    paths = []
    for image, fact in zip(images, facts, strict=True):
        seeded = base if name and not several else f"{base}-{fact['seed']}"
        paths.append(_save(image, free(folder / f"{seeded}.png"), fact))
    if several:
        from ..core.images import grid

        cols = math.ceil(math.sqrt(len(images)))
        sheet = grid(images, math.ceil(len(images) / cols), cols)
        fact = {**facts[0], "seeds": [fact["seed"] for fact in facts], "width": sheet.width, "height": sheet.height}
        paths.append(_save(sheet, free(folder / f"{base}-sheet.png"), fact))
    return paths


def _save(image: Image, path: Path, fact: dict[str, Any]) -> Path:
    try:
        with atomic_file(path) as partial:
            image.save(partial, format="PNG", pnginfo=chunks(fact))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); choose another --output.") from error
    return path
