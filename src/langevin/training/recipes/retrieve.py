"""Real pictures of a class, for prior preservation: those whose captions say it, from a folder or a hub dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, InputError, did_you_mean
from ...core.files import atomic_file, atomic_write
from ...core.imports import require
from ...core.logging import get_logger
from ...core.progress import progress_bar
from ...core.records import FILE, METADATA, Problems, Record, read_folder
from ..data.framing import opened
from ..settings import parse, told

logger = get_logger(__name__)


@dataclass
class RetrieveSettings:
    """Settings of retrieve.py."""

    class_prompt: str | None = told(None, "what captions have to say, such as cat")
    class_data_dir: str | None = told(None, "folder that takes the pictures and their captions")
    num_class_images: int = told(200, "how many pictures it should hold")
    dataset_name: str | None = told(None, "hub dataset to take them from, of which no more is read than it takes")
    dataset_config_name: str | None = told(None, "its configuration")
    dataset_split: str = told("train", "its split")
    data_dir: str | None = told(None, "folder to take them from, with metadata.jsonl, .csv or text files beside")
    image_column: str = told("image", "column of the pictures")
    caption_column: str = told("text", "column of the captions, texts or lists of texts")
    cache_dir: str | None = told(None, "folder for what is downloaded")

    def check(self) -> None:
        """Raise InputError or ConfigError for settings that cannot be used."""
        for name in ("class_prompt", "class_data_dir"):
            if not (getattr(self, name) or "").strip():
                raise ConfigError(f"{name} is missing.")
        if self.num_class_images < 1:
            raise InputError(f"num_class_images is {self.num_class_images}; it must be at least 1.")
        if (self.dataset_name is None) == (self.data_dir is None):
            raise ConfigError("Name where the pictures come from: either dataset_name, a hub dataset, or data_dir.")

    def records(self) -> Iterator[Record]:
        """Yield the examples of the source, in its order.

        Raises:
            Problems, InputError: for a source that cannot be read, or lacks a column.
            MissingDependencyError: without the package `datasets` for a hub dataset.
        """
        if self.data_dir is None:
            yield from streamed(self)
            return
        found = read_folder(self.data_dir)
        if found.problems:
            raise Problems(found.where, found.problems)
        self.require({name for row in found.rows for name in row.columns}, found.where)
        yield from found.rows

    def require(self, columns: Iterable[str], where: str) -> None:
        """Raise InputError unless the columns of a source are those that are asked for."""
        for name in (self.image_column, self.caption_column):
            if name not in columns:
                raise InputError(f"{where} has no column {name!r}{did_you_mean(name, columns)}")


def streamed(settings: RetrieveSettings) -> Iterator[Record]:
    """Yield the rows of a hub dataset, downloaded one after the other; pictures stay encoded.

    Raises:
        InputError: when there is no such dataset, split or column.
    """
    datasets = require("datasets", why="Pictures of a hub dataset", extra="training")
    name, options = str(settings.dataset_name), {"split": settings.dataset_split, "cache_dir": settings.cache_dir}
    try:
        table = datasets.load_dataset(name, settings.dataset_config_name, streaming=True, **options)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise InputError(f"The dataset {name!r} cannot be loaded: {error}") from error
    for column, kind in (table.features or {}).items():
        if isinstance(kind, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    for number, row in enumerate(table):
        settings.require(row, f"The dataset {name!r}")
        yield Record(f"row {number} of {name}", row)


def said(phrase: str, captions: Any) -> str | None:
    """Return the first caption that says a phrase, in whole words of any case, also in the plural; or None."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    wanted = re.compile(rf"(?<!\w){words}(?:e?s)?(?!\w)", re.IGNORECASE)
    texts = [captions] if isinstance(captions, str) else captions or ()
    return next((text for text in texts if isinstance(text, str) and wanted.search(text)), None)


def retrieve(settings: RetrieveSettings) -> Path:
    """Take pictures whose captions say the class, and return the folder that holds them.

    They are written as images/00000.png and so on, listed with their captions in metadata.jsonl. A folder that holds
    some already is filled up.

    Raises:
        ConfigError, InputError: for settings and sources that cannot be used, and when no caption says the class.
    """
    settings.check()
    folder, phrase = Path(str(settings.class_data_dir)).expanduser(), str(settings.class_prompt)
    listing = folder / METADATA[0]
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    known = {json.loads(line).get("source") for line in lines}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with progress_bar(total=settings.num_class_images, initial=len(lines), desc="Pictures") as bar:
        for record in settings.records() if len(lines) < settings.num_class_images else ():
            caption = said(phrase, record.columns.get(settings.caption_column))
            if caption is None or record.name in known:
                continue
            try:
                picture = opened(record.columns[settings.image_column], record.name)
            except InputError as error:
                logger.warning("%s; it is passed over.", error)
                continue
            name = f"images/{len(lines):05d}.png"
            with atomic_file(folder / name) as partial:
                picture.save(partial, "PNG")
            lines.append(json.dumps({FILE: name, "text": caption, "source": record.name}))
            atomic_write(listing, "\n".join(lines) + "\n")
            bar.update()
            if len(lines) >= settings.num_class_images:
                break
    if not lines:
        raise InputError(f"No caption of {settings.dataset_name or settings.data_dir} says {phrase!r}.")
    if len(lines) < settings.num_class_images:
        logger.warning("%s holds %d of %d pictures; no more were found.", folder, len(lines), settings.num_class_images)
    return folder


def run(words: Sequence[str]) -> Path:
    """Take pictures with the flags of a command line and return the folder that holds them."""
    about = "Takes real pictures of a class by their captions."
    return retrieve(parse(RetrieveSettings, words, name="retrieve.py", about=about))  # type: ignore[type-var]
