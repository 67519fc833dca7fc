"""A weight file as far as it can be read, and what is wrong with it: for looking at files, not for loading them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import MissingDependencyError, WeightsError
from ..core.pickles import PickleFile
from ..core.weights_io import Entry, SafetensorsFile, describe
from .checkpoint import ARCHIVE, GGUF, KERAS, PICKLE, SAFETENSORS, format_of
from .keras import KerasFile

SUFFIXES = {
    SAFETENSORS: (".safetensors", ".sft"),
    ARCHIVE: (".ckpt", ".bin", ".pt", ".pth"),
    PICKLE: (".ckpt", ".bin", ".pt", ".pth"),
}
"""Format -> endings that names of such files have."""
WEIGHT_SUFFIXES = (*SUFFIXES[SAFETENSORS], *SUFFIXES[ARCHIVE], ".gguf", ".h5")


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        format: how it is written, or None where it holds no weights.
        size: in bytes.
        entries: name -> type and shape.
        metadata: strings stored with the tensors.
        beside: what a pickled file holds beside the weights, name -> kind of object.
        damage: what is wrong with it, one sentence each; empty when it is whole.
    """

    format: str | None
    size: int
    entries: Mapping[str, Entry] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    damage: tuple[str, ...] = ()


class _Tolerant(SafetensorsFile):
    """A safetensors file whose header is read even when the tensors behind it are not all there."""

    complaint: str | None = None

    def _check_layout(self, entries: Mapping[str, Entry], base: int, size: int) -> None:
        try:
            super()._check_layout(entries, base, size)
        except WeightsError as error:
            self.complaint = str(error)


def look(path: Path) -> Contents:
    """Return what a file holds, judged by its header alone; damage is told and not raised."""
    size = path.stat().st_size
    written = format_of(path)
    if written == GGUF:
        return Contents(GGUF, size)
    try:
        if written == KERAS:
            with KerasFile(path) as keras:
                return Contents(KERAS, size, keras.entries, keras.metadata)
        if written == SAFETENSORS:
            with _Tolerant(path) as opened:
                damage = [] if opened.complaint is None else [sentence(path, opened.complaint)]
                return Contents(
                    SAFETENSORS, size, opened.entries, opened.metadata, {}, (*damage, *_misnamed(path, SAFETENSORS))
                )
        if written is not None:
            with PickleFile(path) as pickled:
                beside = {name: _kind(value) for name, value in pickled.extras.items()}
                return Contents(written, size, pickled.entries, pickled.metadata, beside, _misnamed(path, written))
    except MissingDependencyError:
        return Contents(KERAS, size)
    except WeightsError as error:
        return Contents(KERAS if written == KERAS else None, size, damage=(sentence(path, str(error)),))
    return Contents(None, size, damage=(f"It is {describe(path)}{_pointed(path)}.",))


def _kind(value: Any) -> str:
    """Return a plain value as text, and the kind of any other."""
    if isinstance(value, (str, int, float)):
        return str(value)[:80]
    return repr(value).strip("<>")[:80] if type(value).__name__ == "Inert" else type(value).__name__


def _misnamed(path: Path, kind: str) -> tuple[str, ...]:
    """Return a complaint when the ending of a file's name belongs to another format."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES[kind] or all(suffix not in endings for endings in SUFFIXES.values()):
        return ()
    return (f"Its name ends in {suffix} and it is {kind}; call it {path.stem}{SUFFIXES[kind][0]}.",)


def _pointed(path: Path) -> str:
    """Return, for a pointer of git-LFS, how large the file is that it stands for."""
    with open(path, "rb") as file:
        found = re.search(rb"^size (\d+)", file.read(1024), flags=re.MULTILINE)
    return f" (the real file has {amount(int(found[1]))}B)" if found and path.stat().st_size < 1024 else ""


def sentence(path: Path, message: str) -> str:
    """Return an error's message as a sentence about the file, without its path."""
    text = message.removeprefix(os.fspath(path)).strip()
    text = text if text.startswith(("is ", "has ", "was ", "wants ", "holds ", "does ", "became ")) else f"says: {text}"
    return f"It {text}".rstrip(".") + "."


def amount(number: int) -> str:
    """Return a number in three digits and the letter of its thousands, followed by a space for a unit."""
    for letter, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {letter}" if number < 999.5 * size else f"{number / size:.0f} {letter}"
    return f"{number} "
