"""Weight files in the type that they are loaded in, kept so that later loads map them instead of casting.

What is kept lies in the folder `casts` of the cache (`core.native.cache_folder`), one safetensors file for each weight
file and type, under a name made of the path, the size and the time of the weight file. A file that has changed is cast
anew, and its old cast goes. Nothing else is deleted: the folder may be, at any time.

Gain: a UNet of 3.4 GB in float32 is loaded in bfloat16 in 0.06 s in place of 0.57, and processes share its memory
(`python -m benchmarks --only load`). Loss: room on the disk, half as much as the float32 file, and the first load also
writes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import WeightsError
from ..core.files import atomic_file
from ..core.logging import get_logger
from ..core.native import cache_folder
from ..core.weights_io import NAMES, SafetensorsFile, TensorFile, open_plain, write_safetensors
from .loading import FiniteCheck
from .weight_files import WeightFiles

logger = get_logger(__name__)
FORMAT = "1"
"""Counts the ways in which casts were made; what another one has made is not used."""


class Cast(Mapping[str, Tensor]):
    """The tensors of a file in another type, read when they are asked for the second time; at first their shape tells.

    That is how `write_safetensors` asks.
    """

    def __init__(self, source: TensorFile, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self.check = FiniteCheck(mapped=False)
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        entry = self.source.entries[name]
        dtype = self.dtype if entry.dtype.is_floating_point else entry.dtype
        if name not in self._asked:
            self._asked.add(name)
            return torch.empty((), dtype=dtype).expand(entry.shape)
        target = torch.empty(entry.shape, dtype=dtype)
        self.source.read({name: target}, self.check)
        self.check.settle({name: target})
        return target

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.entries)

    def __len__(self) -> int:
        return len(self.source.entries)


def kept(files: WeightFiles, dtype: torch.dtype | None) -> WeightFiles:
    """Return weight files with those that `dtype` asks to cast replaced by kept casts, which are made where missing.

    A file stays as it is where it needs no cast, where it cannot be cast (it is damaged or not finite, which loading it
    will tell), and, with a warning, where the cache cannot be written.
    """
    if dtype is None or dtype not in NAMES:
        return files
    found = {file: _kept(file, dtype) for file in files.files}
    owner = files.owner and {name: found[file] for name, file in files.owner.items()}
    return WeightFiles(tuple(found.values()), owner)


def _kept(file: Path, dtype: torch.dtype) -> Path:
    target = cast_path(file, dtype)
    try:
        with SafetensorsFile(target):
            return target
    except WeightsError:  # not there, or not whole
        pass
    try:
        with open_plain(file) as source:
            kinds = {entry.dtype for entry in source.entries.values() if entry.dtype.is_floating_point}
            if kinds <= {dtype}:
                return file
            logger.info("%s is cast to %s, and kept in %s.", file, dtype, target)
            with atomic_file(target) as partial:
                write_safetensors(partial, Cast(source, dtype), {**source.metadata, "source": os.fspath(file)})
    except WeightsError:
        return file
    except OSError as error:
        where = f"{target.parent} ({error.strerror})"
        logger.warning("The cast of %s cannot be kept in %s; name another folder in LANGEVIN_CACHE.", file, where)
        return file
    for old in target.parent.glob(f"{target.name.rpartition('-')[0]}-*.safetensors"):
        if old != target:
            with suppress(OSError):  # some systems keep what another process still maps; a later change tries again
                old.unlink()
    return target


def cast_path(file: Path, dtype: torch.dtype) -> Path:
    """Return where the cast of a weight file, as it is now, is kept."""
    real = Path(os.path.realpath(file))
    state = real.stat()
    place = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    stamp = hashlib.sha256(f"{FORMAT} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    return cache_folder() / "casts" / f"{place}-{NAMES[dtype].lower()}-{stamp}.safetensors"
