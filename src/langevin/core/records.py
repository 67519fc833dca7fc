"""Examples as they lie in a folder or a hub dataset: pictures by column, a caption, and all that is wrong with them.

A folder holds pictures, in folders of any depth, and their texts in one of three ways: `metadata.jsonl`,
`metadata.csv` (a column `file_name`, and one that ends in `_file_name` for every further picture), or a text file
beside each picture. A list in such a file can also stand for itself, as a manifest of `langevin data check` does.
Small sets are decoded once, so that a broken picture is known before training begins.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import ConfigError, InputError, did_you_mean
from .files import safe_join
from .images import decode
from .logging import get_logger

logger = get_logger(__name__)

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")
METADATA = ("metadata.jsonl", "metadata.csv")
FILE = "file_name"
HASH = "pixel_hash"
"""The column in which a manifest keeps the hash of the decoded pixels, beside "width" and "height"."""
OWN = "langevin_manifest"
"""The column of every line of a manifest that holds what is the manifest's own and no column of the examples."""
VERSION = {"version": 2}
"""What it always holds. In the first version `LEFT_OUT` and `FOLDER` were columns beside those of the examples."""
LEFT_OUT = "left_out"
"""In it: why an example is not one."""
FOLDER = "folder"
"""In it, when the manifest lies elsewhere: where its pictures are."""
DECODED = 10_000
"""Sets of up to that many pictures are decoded before training; `langevin data check` takes any."""
SHOWN = 20
"""Problems that an error lists; the others are counted."""


class Problems(ConfigError):
    """All that is wrong with a set of examples, at once."""

    def __init__(self, where: str, found: Sequence[str]) -> None:
        more = f"\n  ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        lines = "".join(f"\n  {line}" for line in found[:SHOWN])
        super().__init__(f"{where} cannot be trained on:{lines}{more}")
        self.found = list(found)


@dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
        name: where it is, for messages.
        columns: name -> a path for a picture, and any value for the others.
    """

    name: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """The examples of a source, in a fixed order.

    Attributes:
        where: the source, for messages.
        rows: the examples.
        problems: what is wrong with the source, one line each, with the cure.
        folder: where the names of pictures begin; None for a hub dataset.
        held: examples to measure on, which are none of the rows.
    """

    where: str
    rows: Sequence[Record]
    problems: Sequence[str] = field(default=())
    folder: Path | None = None
    held: Records | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def checked(self, *columns: str | None) -> Records:
        """Return it if it is whole, has these columns, and their pictures can be decoded; None asks for nothing.

        Raises:
            Problems: with everything that is wrong.
        """
        found = self.faults(*columns) + self._broken(*columns)
        if found:
            raise Problems(self.where, found)
        return self

    def columns(self) -> list[str]:
        """Return the names of all columns."""
        return sorted({name for row in self.rows for name in row.columns})

    def faults(self, *columns: str | None) -> list[str]:
        """Return everything that is wrong with it, and with these columns of it."""
        found = list(self.problems)
        present = self.columns()
        if not self.rows and not found:
            found.append(f"it holds no picture; pictures end in {', '.join(ENDINGS)}")
        for name in filter(None, columns):
            lacking = [row.name for row in self.rows if row.columns.get(name) is None]
            if self.rows and name not in present:
                found.append(f"there is no column {name!r}{did_you_mean(name, present)}")
            elif lacking:
                found.append(f"{len(lacking)} examples have no {name!r}, such as {lacking[0]}")
        return found

    def _broken(self, *columns: str | None) -> list[str]:
        """Return what is wrong with the picture files of columns."""
        if self.folder is None:
            return []
        files = [row.columns.get(name) for name in columns if name for row in self.rows]
        there = [file for file in files if isinstance(file, Path) and os.path.isfile(file)]
        if len(there) > DECODED:
            logger.info("%d pictures are not decoded beforehand; `langevin data check` does it.", len(there))
            return []
        with ThreadPoolExecutor() as pool:
            told = pool.map(lambda file: _fault(file, file.stat().st_mtime_ns), there)
        return [f"{fault} Save it anew from the original, or take it away" for fault in told if fault]


@lru_cache(maxsize=DECODED)
def _fault(file: Path, _changed: int) -> str | None:
    """Return why a picture cannot be decoded, or None; it is asked once as long as the file stays as it is."""
    try:
        decode(file)
    except InputError as error:
        return str(error)
    return None


def read_folder(folder: str | Path, *, caption: str = "text") -> Records:
    """Return the examples of a folder: the pictures under "image", captions from text files under `caption`.

    The file of a manifest stands for the examples that it lists.

    Raises:
        InputError: when there is no such folder.
    """
    folder = Path(folder).expanduser()
    if folder.is_file() and folder.suffix in (".jsonl", ".csv"):
        return _from_metadata(folder.parent, folder)
    if not folder.is_dir():
        near = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, near) if near else "."
        raise InputError(f"The folder of training data {folder} does not exist{hint}")
    listed = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(listed) > 1:
        return Records(str(folder), [], [f"it has both {' and '.join(METADATA)}; keep one of them"], folder)
    if listed:
        return _from_metadata(folder, listed[0])
    files, problems = files_in(folder)
    rows = []
    for path in filter(is_picture, files):
        name = path.relative_to(folder).as_posix()
        words = {}
        if path.with_suffix(".txt") in files:
            try:
                words = {caption: path.with_suffix(".txt").read_text(encoding="utf-8-sig").strip()}
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"the text of {name} cannot be read ({error}); save it as UTF-8")
        rows.append(Record(name, {"image": path, **words}))
    return Records(str(folder), rows, problems, folder)


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files below a folder, hidden ones left out, by name."""
    return [path for path in files_in(folder)[0] if is_picture(path)]


def is_picture(path: Path) -> bool:
    """Tell whether a name is that of a picture that can be read."""
    return path.suffix.lower() in ENDINGS


def files_in(folder: Path) -> tuple[dict[Path, None], list[str]]:
    """Return the files below a folder by name, hidden ones left out, and what is there but cannot be reached."""
    found, problems = [], []

    def refused(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read ({error.strerror}); change its permissions or take it away")

    for place, inside, names in os.walk(folder, onerror=refused):
        inside[:] = [name for name in inside if not name.startswith(".")]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.is_file():
                found.append(path)
            elif is_picture(path):
                problems.append(f"{path.relative_to(folder)} leads to no file; take it away")
    return dict.fromkeys(sorted(found)), problems


def _from_metadata(folder: Path, file: Path) -> Records:
    """Return the examples that a metadata file lists; one of another name is a list of its own."""
    lines, problems = _lines(file)
    whole = file.name in METADATA
    first = any(HASH in line for _, line in lines) and not any(OWN in line for _, line in lines)
    rows: list[Record] = []
    seen: set[Path] = set()
    place = folder
    for number, line in lines:
        at = f"{file.name}, line {number}"
        if not isinstance(line.get(FILE), str):
            problems.append(f"{at}: there is no {FILE!r}")
            continue
        own, line = parted(line, first=first)
        place = folder if whole else Path(own.get(FOLDER) or folder)
        named = {name: str(value) for name, value in line.items() if name == FILE or name.endswith(f"_{FILE}")}
        try:
            files = {"image" if name == FILE else name.removesuffix(f"_{FILE}"): safe_join(place, file)
                     for name, file in named.items()}  # fmt: skip
        except InputError as error:
            problems.append(f"{at}: {error}")
            continue
        seen.update(files.values())
        if own.get(LEFT_OUT):
            continue
        lacking = [path.relative_to(place) for path in files.values() if not os.path.isfile(path)]
        problems += [f"{at}: {path} does not exist" for path in lacking]
        others = {name: value for name, value in line.items() if name not in named}
        rows.append(Record(named[FILE], {**others, **files}))
    found, unreached = files_in(folder) if whole else ({}, [])
    extra = [path.relative_to(folder).as_posix() for path in found if is_picture(path) and path not in seen]
    if extra:
        problems.append(f"{len(extra)} pictures are not in {file.name}, such as {extra[0]}; add them or take them away")
    return Records(str(folder if whole else file), rows, problems + unreached, place)


def parted(line: Mapping[str, Any], *, first: bool) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return what is a manifest's own in a line, and the rest of it.

    Args:
        first: whether the line is of the first version of manifests.
    """
    own = {name: line[name] for name in (FOLDER, LEFT_OUT) if name in line} if first else line.get(OWN)
    if not isinstance(own, dict):
        return {}, dict(line)
    return own, {name: value for name, value in line.items() if name not in (own if first else (OWN,))}


Lines = list[tuple[int, Mapping[str, Any]]]
"""Number of a line -> what it says."""


def _lines(file: Path) -> tuple[Lines, list[str]]:
    """Return the lines of a metadata file with their numbers, and what cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return [], [f"{file.name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"]
    return (_cells if file.suffix == ".csv" else _objects)(file.name, text)


def _cells(name: str, text: str) -> tuple[Lines, list[str]]:
    reader = csv.DictReader(text.splitlines())
    if FILE not in (reader.fieldnames or ()):
        return [], [f"{name} has no column {FILE!r}{did_you_mean(FILE, reader.fieldnames or ())}"]
    rows: Lines = []
    problems = []
    for line in reader:
        if None in line or None in line.values():
            problems.append(f"{name}, line {reader.line_num}: another number of cells than in the first line")
        else:
            rows.append((reader.line_num, line))
    return rows, problems


def _objects(name: str, text: str) -> tuple[Lines, list[str]]:
    rows: Lines = []
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{name}, line {number}: no JSON ({error.msg} at column {error.colno})")
            continue
        if isinstance(value, dict):
            rows.append((number, value))
        else:
            problems.append(f"{name}, line {number}: a JSON {type(value).__name__}; an object was expected")
    return rows, problems


def read_hub(name: str, config: str | None = None, *, split: str = "train", cache_dir: str | None = None) -> Records:
    """Return the examples of a hub dataset, or of a local one that `datasets` can load; pictures stay encoded.

    Raises:
        MissingDependencyError: without the package `datasets`.
        InputError: when there is no such dataset or split.
    """
    from .imports import require

    datasets = require("datasets", why="Training on a hub dataset", extra="training")
    try:
        table = datasets.load_dataset(name, config, split=split, cache_dir=cache_dir)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise InputError(f"The dataset {name!r} cannot be loaded: {error}") from error
    for column, kind in table.features.items():
        if isinstance(kind, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return Records(name, Rows(name, table))


class Rows(Sequence[Record]):
    """The rows of a table of `datasets` as records, read when they are asked for."""

    def __init__(self, name: str, table: Any) -> None:
        self.name, self.table = name, table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        return Record(f"row {number} of {self.name}", self.table[int(number)])
