"""Files of tensors, read piecewise: what all of them share, and the safetensors format, which is written streaming.

The safetensors format is eight bytes (length of the header), a JSON header (name -> dtype, shape, byte range) and the
raw tensors. Files are read here directly, and not through the safetensors package, because a cast then needs no memory
beyond the result's, and because values can be checked while they are in the processor's cache.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import large_pages, threads
from .errors import WeightsError
from .file_cache import CachedFile

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000
MAX_NUMBER = 1 << 48
"""What no side of a tensor and no position in a file reaches."""
CHUNK = 1 << 24
"""Bytes that are read, cast and checked at a time: many enough that calls of the system and of torch do not count."""

SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-LFS pointer and not the weights; run `git lfs pull` in the repository"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 (Keras) file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive (torch writes .bin and .ckpt files so)"),
    (b"\x80\x02", "a Python pickle (torch writes old .bin and .ckpt files so)"),
    (b"\x80\x04", "a Python pickle"),
)


class Part(NamedTuple):
    """A piece of a tensor: elements `first` to `first + length` of `name`, counted in the flattened tensor."""

    name: str
    first: int
    length: int


class Entry(NamedTuple):
    """Where a tensor lies in a file: its type, shape, and the byte range counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def describe(path: Path) -> str:
    """Say in words what a file is, judged by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        return "an empty file; the download or the copy was interrupted"
    for signature, what in SIGNATURES:
        if head.startswith(signature):
            return what
    if not head.strip(b"\0"):
        return "filled with zeros; the download or the copy was interrupted"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, what a server sends in place of a file that needs a login or does not exist"
    if start.startswith(b"<?xml"):
        return "an XML message of a server"
    try:
        text = head[:-3].decode("utf-8") if len(head) == 1024 else head.decode("utf-8")
    except UnicodeDecodeError:
        return "binary data of an unknown kind"
    if not all(sign.isprintable() or sign.isspace() for sign in text):
        return "binary data of an unknown kind"
    kind = "a JSON file" if start.startswith((b"{", b"[")) else "a text file"
    return f"{kind} that begins with {text[:40]!r}"


class TensorFile:
    """A file of tensors, checked when it is opened; tensors are read when they are asked for.

    Attributes: path; entries, name -> Entry; metadata, the strings stored with the tensors.
    Raises WeightsError saying what the file is when it is not whole.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read: {error.strerror}") from error
        self._map: mmap.mmap | None = None
        self._alone = threading.Lock()
        try:
            self.entries, self.metadata = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; views of it stay valid."""
        self._file.close()

    def _read_header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        raise NotImplementedError

    def view(self, name: str) -> Tensor | None:
        """Return the tensor as a copy-on-write view of the file, or None where its bytes are not aligned for that."""
        entry = self.entries[name]
        if entry.start % entry.dtype.itemsize:
            return None
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=entry.dtype)
        count = (entry.stop - entry.start) // entry.dtype.itemsize
        return torch.frombuffer(self._mapped(), dtype=entry.dtype, count=count, offset=entry.start).view(entry.shape)

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            opened = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            if len(opened) < max(entry.stop for entry in self.entries.values()):
                raise WeightsError(self._shrunk())
            self._map = opened
        return self._map

    def read(self, targets: Mapping[str, Tensor], each: Callable[[Tensor, str], None] | None = None) -> None:
        """Read and cast tensors into contiguous targets of their shapes on any device, piece by piece.

        What is cast in memory is cast out of the system's cache, piece by piece, where the system can tell first that
        the file still has it all (Linux); a program that looks at a part which another has cut off would be ended.
        Else the file is read.

        Args:
            each: called with every finished piece of a target, flat, and with its name, from several threads.

        Raises:
            WeightsError: when the file became shorter since it was opened.
        """
        flat = {name: target.view(-1) for name, target in targets.items()}
        own = threading.local()
        casts = any(target.dtype != self.entries[name].dtype for name, target in targets.items())
        on_cpu = all(target.device.type == "cpu" for target in targets.values())
        cached = CachedFile.of(self._file.fileno()) if casts and on_cpu else None

        def buffer() -> Tensor:
            if not hasattr(own, "buffer"):
                (own.buffer,) = large_pages.empty([large_pages.Wanted((CHUNK,), torch.uint8)])
            return own.buffer

        def take(run: tuple[torch.dtype, int, list[Part]]) -> None:
            kind, start, parts = run
            places = [flat[part.name][part.first : part.first + part.length] for part in parts]
            if all(place.dtype == kind and place.device.type == "cpu" for place in places):
                for place in places:
                    self._read_at(start, bytes_of(place))
                    start += place.numel() * kind.itemsize
            else:
                size = sum(part.length for part in parts) * kind.itemsize
                held = cached.part(start, size) if cached and not start % kind.itemsize else None
                if held is None:
                    held = buffer()[:size]
                    self._read_at(start, bytes_of(held))
                for place, values in zip(places, held.view(kind).split([len(p) for p in places]), strict=True):
                    place.copy_(values)
                if cached:
                    cached.forget(start, size)
            if each is not None:
                for place, part in zip(places, parts, strict=True):
                    each(place, part.name)

        threads.each(take, self._runs(targets))
        if cached and not cached.whole():
            raise WeightsError(self._shrunk())

    def _runs(self, names: Iterable[str]) -> Iterator[tuple[torch.dtype, int, list[Part]]]:
        """Yield type, position and parts of runs of adjacent tensors, each run of one type and at most CHUNK bytes."""
        parts: list[Part] = []
        kind, start, stop = torch.uint8, 0, 0
        for name in sorted(names, key=lambda name: self.entries[name].start):
            entry = self.entries[name]
            position, size = entry.start, entry.dtype.itemsize
            while position < entry.stop:
                if parts and (kind != entry.dtype or position != stop or stop - start >= CHUNK):
                    yield kind, start, parts
                    parts = []
                if not parts:
                    kind, start = entry.dtype, position
                stop = min(entry.stop, start + CHUNK)
                parts.append(Part(name, (position - entry.start) // size, (stop - position) // size))
                position = stop
        if parts:
            yield kind, start, parts

    def _read_at(self, offset: int, data: memoryview) -> None:
        """Fill `data` with the bytes at a position of the file; threads may do so at once."""
        while data:
            if hasattr(os, "preadv"):
                done = os.preadv(self._file.fileno(), [data], offset)
            else:
                with self._alone:
                    self._file.seek(offset)
                    done = self._file.readinto(data)
            if not done:
                raise WeightsError(self._shrunk())
            data, offset = data[done:], offset + done

    def _shrunk(self) -> str:
        return f"{self.path} became shorter while it was read"


class SafetensorsFile(TensorFile):
    """A file of the safetensors format."""

    def _read_header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        size = os.fstat(self._file.fileno()).st_size
        head = self._file.read(8)
        length = int.from_bytes(head, "little")
        first = self._file.read(1)
        if len(head) < 8 or first != b"{" or length > MAX_HEADER:
            raise WeightsError(f"{self.path} is not a safetensors file: it is {describe(self.path)}")
        if 8 + length > size:
            raise WeightsError(self._truncated(8 + length, size))
        try:
            header = json.loads(first + self._file.read(length - 1), object_pairs_hook=_without_repeats)
            metadata = header.pop("__metadata__", {})
            if not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("its metadata hold other things than texts")
            entries = {name: self._entry(value, 8 + length) for name, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise WeightsError(f"{self.path} has a damaged safetensors header ({error}); fetch it again") from error
        self._check_layout(entries, 8 + length, size)
        return entries, metadata

    @staticmethod
    def _entry(value: Mapping[str, Any], base: int) -> Entry:
        if value["dtype"] not in DTYPES:
            raise ValueError(f"type {value['dtype']!r} is not known")
        shape, (begin, end) = value["shape"], value["data_offsets"]
        if not all(type(number) is int and 0 <= number < MAX_NUMBER for number in (*shape, begin, end)):
            raise ValueError(f"a shape or offset is negative, absurd or no integer: {shape}, {[begin, end]}"[:200])
        return Entry(DTYPES[value["dtype"]], tuple(shape), base + begin, base + end)

    def _check_layout(self, entries: Mapping[str, Entry], base: int, size: int) -> None:
        """Raise WeightsError unless the tensors fill the file exactly, without gaps or overlaps."""
        position = base
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start != position or entry.stop - entry.start != count_bytes(entry.shape, entry.dtype):
                raise WeightsError(f"{self.path} has a damaged header: the byte range of {name!r} is not its own")
            position = entry.stop
        if position > size:
            raise WeightsError(self._truncated(position, size))
        if position < size:
            raise WeightsError(f"{self.path} has {size - position} bytes after its last tensor; fetch it again")

    def _truncated(self, expected: int, size: int) -> str:
        return f"{self.path} is truncated: its header speaks of {expected} bytes and it has {size}; fetch it again"


def open_plain(path: str | os.PathLike) -> TensorFile:
    """Open a dictionary of weights: safetensors by the file's name, or else what torch.save wrote.

    Raises WeightsError saying what the file is when it is none, is cut short, holds code, or holds other objects.
    """
    if os.fspath(path).endswith(".safetensors"):
        return SafetensorsFile(path)
    from .pickles import PickleFile

    file = PickleFile(path)
    try:
        file.check_plain()
    except BaseException:
        file.close()
        raise
    return file


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, refusing a name that stands in it twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return found


def count_bytes(shape: Iterable[int], dtype: torch.dtype) -> int:
    """Return the size in bytes of a dense tensor."""
    return math.prod(shape) * dtype.itemsize


def error_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, one tensor in memory at a time and without gathering the bytes first.

    A mapping that makes its tensors when they are asked for is asked twice for each: for its shape, and to be written.
    Tensors that share memory are written in full, each under its name. Raises WeightsError for a type or layout that
    the format does not know.
    """
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES or tensor.layout != torch.strided:
            raise WeightsError(f"{name!r} is {tensor.dtype}, {tensor.layout}, which a safetensors file cannot hold")
        if tensor.is_meta:
            raise WeightsError(f"{name!r} has no values (it is on the meta device) and cannot be saved")
        kinds[name] = tensor.dtype, tuple(tensor.shape)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in sorted(kinds.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        end = position + count_bytes(shape, dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    order = [name for name in header if name in kinds]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
        for name in order:
            if 0 not in kinds[name][1]:
                # Flattened first: a scalar has no bytes to view.
                flat = tensors[name].detach().to("cpu").contiguous().view(-1)
                _write_all(file, bytes_of(flat))


def write_pickled(path: str | os.PathLike, value: Any) -> None:
    """Write tensors as `torch.save` does, with bytes that do not depend on the file's name, as a temporary one has."""
    with open(path, "wb") as file:
        torch.save(value, file)


def held_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values; of a quantised one, which is made of others, theirs."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    return sum(held_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def bytes_of(flat: Tensor) -> memoryview:
    """Return the memory of a contiguous one-dimensional tensor on the CPU, without a copy."""
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _write_all(file: Any, data: memoryview) -> None:
    """Write every byte to a file that has no buffer."""
    while data:
        data = data[file.write(data) :]
