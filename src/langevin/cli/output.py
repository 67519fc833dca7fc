"""Where pictures go: names that say what is in the file, and no file lost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, LangevinError
from ..core.files import atomic_file
from ..core.images import grid
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


@contextmanager
def writing(path: Path, cure: str) -> Iterator[None]:
    """Turn the errors of a disk into one that names the path and a cure."""
    try:
        yield
    except LangevinError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); {cure}.") from error


def put(path: Path, image: Image, facts: dict[str, Any]) -> Path:
    """Write a picture with its parameters, in place of what has that name, and return the path.

    Raises:
        InputError: when the folder cannot be written.
    """
    with writing(path, "choose another --output"), atomic_file(path) as partial:
        image.save(partial, format="PNG", pnginfo=chunks(facts))
    return path


def overview(images: list[Image]) -> Image:
    """Return pictures side by side as one, in as many columns as rows or one more."""
    cols = math.ceil(math.sqrt(len(images)))
    return grid(images, math.ceil(len(images) / cols), cols)


@dataclass(frozen=True)
class Place:
    """Where `--output` leads: a folder, and the file's name without suffix (None: to be made from the prompt)."""

    folder: Path
    name: str | None

    @classmethod
    def of(cls, output: str) -> Place:
        """Read `--output`.

        Raises:
            InputError: for a file that is not a PNG.
        """
        path = Path(output).expanduser()
        if path.suffix.lower() == ".png" and not path.is_dir():
            return cls(path.parent, path.stem)
        if path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"):
            raise InputError(
                f"--output {output}: pictures are written as PNG, which keeps their parameters; use {path.stem}.png."
            )
        return cls(path, None)

    def base(self, facts: dict[str, Any]) -> str:
        """Return how the names of files begin, given what the first picture was made with."""
        return self.name or slug(facts.get("prompt") or facts["pipeline"])

    def save(self, image: Image, facts: dict[str, Any], base: str, ending: str = "") -> Path:
        """Write a picture with its parameters under a name that no file has, and return its path.

        Raises:
            InputError: when the folder cannot be written.
        """
        return put(free(self.folder / f"{base}{'-' * bool(ending)}{ending}.png"), image, facts)


def write(images: list[Image], facts: list[dict[str, Any]], place: Place) -> list[Path]:
    """Write the pictures, and a contact sheet when there are several; return the paths, the sheet's last.

    Args:
        facts: the parameters of each picture, written into its file.

    Raises:
        InputError: when the folder cannot be written.
    """
    base, several = place.base(facts[0]), len(images) > 1
    paths = []
    for image, fact in zip(images, facts, strict=True):
        paths.append(place.save(image, fact, base, "" if place.name and not several else str(fact["seed"])))
    if several:
        sheet = overview(images)
        fact = {**facts[0], "seeds": [fact["seed"] for fact in facts], "width": sheet.width, "height": sheet.height}
        paths.append(place.save(sheet, fact, base, "sheet"))
    return paths
