"""A folder of pictures to be judged: which there are, and which prompt each answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..core.files import missing
from ..core.images import decode
from ..core.records import read_folder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Shown:
    """A picture of a folder, and its prompt if one is known."""

    name: str
    path: Path
    prompt: str | None = None

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return str(Path(self.name).with_suffix(""))

    def open(self) -> Image:
        """Return it upright and in RGB, transparency over white.

        Raises:
            InputError: when it cannot be read.
        """
        return decode(self.path)


def read(folder: str | Path) -> list[Shown]:
    """Return the pictures of a folder in the order of their names, each with the prompt that is kept with it.

    That is a text file beside it, a column `text` or `prompt` of its `metadata.jsonl` or `metadata.csv`, or what its
    own file says it was made with. Contact sheets that this library wrote are left out.

    Raises:
        InputError: for a folder that is missing, is empty or has faulty metadata, with all that is wrong.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise missing(place)
    records = read_folder(place, caption="text")
    if records.problems:
        raise InputError(f"{place} cannot be evaluated:\n  " + "\n  ".join(records.problems))
    pictures = []
    for row in records.rows:
        path, said = row.columns["image"], row.columns.get("text", row.columns.get("prompt"))
        facts = kept_in(path) if said is None else {"prompt": said}
        if "seeds" not in facts:
            pictures.append(Shown(row.name, path, facts.get("prompt")))
    if not pictures:
        raise InputError(f"{place} holds no picture.")
    return sorted(pictures, key=lambda shown: natural(shown.name))


def kept_in(path: Path) -> dict[str, Any]:
    """Return what a picture's file says of its making: the JSON that this library writes, or A1111's text.

    Raises:
        InputError: when it cannot be read as a picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            texts = dict(picture.info)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}).") from error
    if isinstance(texts.get("langevin"), str):
        return json.loads(texts["langevin"])
    if isinstance(texts.get("parameters"), str):
        return {"prompt": re.split(r"\n(?:Negative prompt|Steps): ", texts["parameters"])[0].strip()}
    return {}


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2.png before 10.png."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def answering(pictures: Sequence[Shown], prompts: Sequence[str], *, folder: str | Path = "The folder") -> list[Shown]:
    """Return the pictures that answer these prompts: by the prompts kept with them, or by order where none is.

    By order, k pictures per prompt stand together: the first k answer the first prompt.

    Raises:
        InputError: when pictures and prompts cannot be brought together, with the cure.
    """
    if not any(shown.prompt for shown in pictures):
        each, rest = divmod(len(pictures), len(prompts))
        if rest or not each:
            raise InputError(
                f"{folder} has {len(pictures)} pictures, which keep no prompts, and there are {len(prompts)} prompts; "
                "by order there must be as many pictures as prompts, or a multiple."
            )
        return [replace(shown, prompt=prompts[k // each]) for k, shown in enumerate(pictures)]
    wanted = set(prompts)
    found = [shown for shown in pictures if shown.prompt in wanted]
    lacking = [prompt for prompt in prompts if prompt not in {shown.prompt for shown in found}]
    if lacking:
        raise InputError(
            f"{folder} has no picture of {len(lacking)} of the {len(prompts)} prompts, such as {lacking[0]!r}."
        )
    return found
