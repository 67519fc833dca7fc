"""Files that `torch.save` wrote (.ckpt, .bin, .pt, .pth): their objects without running code, their tensors piecewise.

In a zip archive (torch >= 1.6) each storage is an uncompressed member; in the older format the storages follow the
pickles one by one. Either way the program is run by `unpickling.Machine`, and tensors stay in the file until they are
asked for.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import WeightsError
from .report import some
from .unpickling import NONSENSE, Machine, Storage, Stored, whole_numbers
from .weights_io import (
    MAX_HEADER,
    Entry,
    TensorFile,
    bytes_of,
    count_bytes,
    describe,
    error_line,
)

WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module", "weights", "net")
"""Names under which training scripts keep the weights beside other things."""
MAX_DEPTH = 64
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What the first two pickles of the older format hold."""

# -- archives and older files ---------------------------------------------------------------------------------------

Places = dict[str, tuple[int, int]]
"""Key of a storage -> position of its first byte in the file, and its size in bytes."""


def _read_zip(path: Path, file: Any) -> tuple[Any, Places]:
    """Return the object in a zip archive of torch, and where its storages lie."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise WeightsError(f"{path} is refused: members of the archive have the same name")
        end = archive.start_dir
    roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(roots) != 1:
        raise WeightsError(f"{path} is a zip archive that torch.save did not write; it holds {some(list(members))}")
    (root,) = roots
    if f"{root}constants.pkl" in members:
        raise WeightsError(f"{path} holds a TorchScript program, which is code, and was not opened")
    wanted = {name: member for name, member in members.items() if name.startswith((f"{root}data", f"{root}byteorder"))}
    places = {name.removeprefix(root): _place(path, file, member, end) for name, member in wanted.items()}
    _check_apart(path, places.values())
    if places.get("byteorder") and _bytes_at(file, *places["byteorder"]) != b"little":
        raise WeightsError(f"{path} was written on a machine of another byte order, which is not read here")
    if places["data.pkl"][1] > MAX_HEADER:
        raise WeightsError(f"{path} is refused: its data.pkl has {places['data.pkl'][1]} bytes, far too many for names")
    machine = Machine(path)
    found = machine.run(_bytes_at(file, *places["data.pkl"]))
    stored = {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}
    _check_claims(path, machine.storages, stored)
    return found, stored


def _check_claims(path: Path, storages: Iterable[Storage], places: Places) -> None:
    """Raise WeightsError when a storage is said to be larger than the file has bytes for it."""
    for storage in storages:
        claimed = (storage.first + storage.length) * storage.dtype.itemsize
        held = places[storage.key][1] if storage.key in places else 0
        if claimed > held:
            raise WeightsError(
                f"{path} is damaged or cut short: it claims {claimed} bytes for the storage {storage.key!r} "
                f"and holds {held}; fetch it again"
            )


def _place(path: Path, file: Any, member: zipfile.ZipInfo, end: int) -> tuple[int, int]:
    """Return position and size of an archive member, which must be stored as it is and lie inside the file."""
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
        raise WeightsError(
            f"{path} is refused: its member {member.filename!r} is compressed or encrypted "
            f"({member.compress_size} bytes claim to be {member.file_size}), which torch.save never does"
        )
    head = _bytes_at(file, member.header_offset, 30) if member.header_offset >= 0 else b""
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise ValueError(f"the archive member {member.filename!r} is not where its directory says")
    lengths = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    start = member.header_offset + 30 + sum(lengths)
    if start + member.file_size > end:
        raise ValueError(f"the archive member {member.filename!r} reaches beyond the file")
    return start, member.file_size


def _check_apart(path: Path, places: Iterable[tuple[int, int]]) -> None:
    position = 0
    for start, size in sorted(places):
        if start < position:
            raise WeightsError(f"{path} is refused: members of the archive lie on top of each other")
        position = start + size


def _bytes_at(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _read_old(path: Path, file: Any) -> tuple[Any, Places]:
    """Return the object in a file of torch < 1.6, and where its storages lie.

    Five pickles (a magic number, the version, facts of the machine, the object, the keys of its storages), and then for
    each key the number of elements in eight bytes and the elements.
    """
    machine = Machine(path)
    with contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
        if machine.run(data) != MAGIC:
            raise WeightsError(f"{path} is a Python pickle that torch.save did not write")
        version, system, found, keys = (machine.run(data) for _ in range(4))
        if version != PROTOCOL or system.get("little_endian") is not True:
            raise WeightsError(f"{path} was written by an unknown version of torch or on another kind of machine")
        sizes = {storage.key: storage.dtype.itemsize for storage in machine.storages}
        places: Places = {}
        for key in keys:
            (length,) = whole_numbers([int.from_bytes(data.read(8), "little", signed=True)])
            places[key] = data.tell(), length * sizes[key]
            if data.tell() + length * sizes[key] > len(data):
                raise ValueError(f"a storage of {length} elements reaches beyond the file")
            data.seek(length * sizes[key], os.SEEK_CUR)
    _check_claims(path, machine.storages, places)
    return found, places


@contextlib.contextmanager
def _sense(path: Path) -> Iterator[None]:
    """Turn the errors of a program or archive that makes no sense into WeightsError."""
    try:
        yield
    except (*NONSENSE, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise WeightsError(f"{path} is damaged or cut short ({error_line(error)}); fetch it again") from error


# -- weights --------------------------------------------------------------------------------------------------------


class PickleFile(TensorFile):
    """A file that torch.save wrote, its program run without calling anything; tensors are read when asked for.

    Dictionaries inside the weights give dotted names. Tensors may share memory and lie in any order of strides.

    Attributes: path; entries, name -> Entry; metadata, the texts and numbers beside the weights, as strings; extras,
    everything beside the weights; root, the name under which the weights stood ("" for a plain dictionary of weights).
    Raises WeightsError for a file that is none, is not whole, or names code.
    """

    root: str
    extras: dict[str, Any]

    def _read_header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        head = _bytes_at(self._file, 0, 2)
        if head != b"PK" and not head.startswith(b"\x80"):
            raise WeightsError(f"{self.path} is not a torch weights file: it is {describe(self.path)}")
        with _sense(self.path):
            self._found, self._places = (_read_zip if head == b"PK" else _read_old)(self.path, self._file)
            self.root, self._stored, self.extras = find_weights(self._found)
            entries = {name: self._entry(stored) for name, stored in self._stored.items()}
            self._shared = overlapping(entries)
        return entries, {
            name: str(value) for name, value in self.extras.items() if isinstance(value, (str, int, float))
        }

    def _entry(self, stored: Stored) -> Entry:
        storage, size = stored.storage, stored.dtype.itemsize
        start = self._places[storage.key][0] + storage.first * storage.dtype.itemsize + stored.offset * size
        dense = count_bytes(stored.shape, stored.dtype)
        if dense == 0 or stored.is_dense():
            return Entry(stored.dtype, stored.shape, start, start + dense)
        if dense > max(1 << 28, os.fstat(self._file.fileno()).st_size):
            raise ValueError(f"a tensor repeats few values to {dense} bytes")
        return Entry(stored.dtype, stored.shape, start, start + stored.reach() * size)

    def view(self, name: str) -> Tensor | None:
        """Return the tensor as a copy-on-write view of the file, or None where its bytes are shared or out of order."""
        return super().view(name) if self._stored[name].is_dense() and name not in self._shared else None

    def read(self, targets: Mapping[str, Tensor], each: Callable[[Tensor, str], None] | None = None) -> None:
        """Read and cast tensors, as the base class does; those with other strides are put in order first."""
        super().read({name: target for name, target in targets.items() if self._stored[name].is_dense()}, each)
        for name, target in targets.items():
            if not self._stored[name].is_dense():
                target.copy_(self._ordered(self._stored[name]))
                if each is not None:
                    each(target.view(-1), name)

    def _ordered(self, stored: Stored) -> Tensor:
        """Return a contiguous copy of a tensor."""
        entry = self._entry(stored)
        buffer = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
        self._read_at(entry.start, bytes_of(buffer))
        if not buffer.numel():
            return torch.empty(stored.shape, dtype=entry.dtype)
        return buffer.view(entry.dtype).as_strided(stored.shape, stored.stride).contiguous()

    def objects(self) -> Any:
        """Return the object in the file with its tensors, copied; objects of classes are Inert.

        Raises WeightsError when it is nested deeper than MAX_DEPTH.
        """
        done: dict[int, Any] = {}
        with _sense(self.path):
            return self._filled(self._found, done, 0)

    def _filled(self, value: Any, done: dict[int, Any], depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("objects are nested too deep")
        if id(value) in done:
            return done[id(value)]
        if isinstance(value, Stored):
            done[id(value)] = self._ordered(value)
        elif isinstance(value, dict):
            done[id(value)] = {}
            done[id(value)] |= {key: self._filled(inner, done, depth + 1) for key, inner in value.items()}
        elif isinstance(value, (list, tuple)):
            items = [self._filled(inner, done, depth + 1) for inner in value]
            done[id(value)] = items if isinstance(value, list) else tuple(items)
        else:
            return value
        return done[id(value)]

    def check_plain(self) -> None:
        """Raise WeightsError unless the file holds a dictionary of weights and nothing else."""
        others = [*self.extras, *filter(None, [self.root])]
        if others:
            what = f"entries that are no tensors: {', '.join(others[:5])}"
            what = type(self.extras[""]).__name__ if others == [""] else what
            raise WeightsError(f"{self.path} does not hold a plain dictionary of weights; it holds {what}")


def overlapping(entries: Mapping[str, Entry]) -> set[str]:
    """Return the names of tensors that share bytes with another, so that a change of one would change the other."""
    shared: set[str] = set()
    last, stop = "", 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < min(stop, entry.stop):
            shared |= {name, last}
        if entry.stop > stop:
            last, stop = name, entry.stop
    return shared


def find_weights(found: Any) -> tuple[str, dict[str, Stored], dict[str, Any]]:
    """Return where in an object the weights stand, the weights by their dotted names, and what stands beside them."""
    root, weights = "", found
    extras: dict[str, Any] = {}
    while isinstance(weights, dict) and not any(isinstance(value, Stored) for value in weights.values()):
        inner = next((name for name in WRAPPERS if _flat(name, weights.get(name))), None)
        if inner is None:
            break
        extras |= {str(key): value for key, value in weights.items() if key != inner}
        root, weights = f"{root}.{inner}".removeprefix("."), weights[inner]
    if not isinstance(weights, dict):
        return root, {}, {"": weights}
    flat: dict[str, Stored] = {}
    for key, value in weights.items():
        inside = _flat(str(key), value)
        if not inside and value != {}:
            extras[str(key)] = value
        if flat.keys() & inside.keys():
            raise ValueError(f"two weights have the name {min(flat.keys() & inside.keys())!r}")
        flat |= inside
    return root, flat, extras


def _flat(name: str, value: Any) -> dict[str, Stored]:
    """Return the tensors in a value and in the dictionaries inside it, each dictionary once."""
    flat: dict[str, Stored] = {}
    seen: set[int] = set()
    waiting = [(name, value)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Stored):
            flat[name] = value
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            waiting += [(f"{name}.{key}", inner) for key, inner in reversed(value.items())]
    return flat


def read_objects(path: str | os.PathLike) -> Any:
    """Return the object that torch.save wrote: containers, numbers, texts and tensors; others become Inert.

    For small files whose structure matters, such as embeddings. Raises WeightsError as PickleFile does.
    """
    with PickleFile(path) as file:
        return file.objects()
