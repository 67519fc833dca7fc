"""Files: where a name leads (a local folder or the hub), and writes that are whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConfigError, InputError, did_you_mean

PathLike = str | os.PathLike
WEIGHT_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".h5")


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: when the file is missing, is not JSON, or holds something other than an object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not a JSON file ({error}).") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}; an object was expected.")
    return value


def safe_join(folder: PathLike, name: str) -> Path:
    """Return `folder / name`, refusing names that lead outside the folder.

    Raises:
        InputError: for absolute names and names that climb with `..`.
    """
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise InputError(f"{name!r} leads outside {folder}; file names inside a model must be relative.")
    return Path(folder) / relative


def leads_out(file: Path, folder: Path) -> bool:
    """Tell whether a file of a folder is a link to another place; the hub's cache, which is made of links, is none.

    The cache holds `models--NAME/snapshots/REVISION/FILE -> models--NAME/blobs/HASH`.
    """
    real, homes = file.resolve(), [folder.resolve()]
    homes += [parent.parent / "blobs" for parent in folder.resolve().parents if parent.name == "snapshots"]
    return not any(real.is_relative_to(home) for home in homes)


def is_local(name_or_path: PathLike) -> bool:
    """Tell whether the name leads to the file system: it exists, or can only be meant as a path or a weight file."""
    text = os.fspath(name_or_path)
    meant = os.path.isabs(text) or text.startswith((".", "~")) or text.count("/") > 1 or text.endswith(WEIGHT_FILES)
    return meant or os.path.exists(text)


def missing(name_or_path: PathLike) -> InputError:
    """Return the error for a local path that does not exist, naming the nearest sibling."""
    path = Path(name_or_path).expanduser()
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings) if siblings else f"; the folder {path.parent} does not exist either."
    return InputError(f"{path} does not exist{hint}")


def resolve_file(name_or_path: PathLike, filename: str, *, subfolder: str | None = None, **hub: Any) -> Path:
    """Return the local path of `filename` in a folder or hub repository; a path to a file is returned as it is.

    Args:
        hub: see `core.hub.fetch_file`. A local path never touches the network.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if is_local(name_or_path):
        if not path.is_dir():
            raise missing(path)
        folder = safe_join(path, subfolder) if subfolder else path
        if not (folder / filename).is_file():
            found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
            listing = f"the folder holds: {', '.join(found)}" if found else "the folder does not exist or is empty"
            raise InputError(f"{folder} has no {filename}; {listing}.")
        return folder / filename
    from .hub import fetch_file

    return fetch_file(os.fspath(name_or_path), filename, subfolder=subfolder, **hub)


def resolve_folder(name_or_path: PathLike, *, allow_patterns: Sequence[str] | None = None, **hub: Any) -> Path:
    """Return a local folder for a path or hub repository, downloading the files that match `allow_patterns`."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{path} is a file; a folder or a hub repository was expected.")
    if is_local(name_or_path):
        raise missing(path)
    from .hub import fetch_folder

    return fetch_folder(os.fspath(name_or_path), allow_patterns=allow_patterns, **hub)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the permissions that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving without an error it is flushed and takes the final name.

    A process killed at any moment leaves either the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write(path: PathLike, content: str | bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: PathLike, *, drop: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Give an empty folder beside `path`; on leaving without an error it takes the place of `path`.

    Files that an existing `path` holds and the new folder does not are carried over, so a save never loses what it did
    not write, except those that `drop` tells to leave behind by their path within the folder. New files get the
    permissions that the umask gives.
    A process killed at any moment leaves the old folder or the new one. Where the system cannot exchange two folders in
    one step, the old one lies beside `path` as `.NAME.previous` for an instant, and the next call puts it back.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = path.parent / f".{path.name}.previous"
    if previous.exists() and not path.exists():
        os.replace(previous, path)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        mask = _umask()
        for file in partial.rglob("*"):
            # Some writers, that of safetensors among them, leave files that only their owner can read.
            if file.is_file() and not file.is_symlink():
                file.chmod(file.stat().st_mode | (0o666 & ~mask))
        if path.is_dir():
            _carry_over(path, partial, drop or (lambda name: False))
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        partial.chmod(0o777 & ~mask)
        shutil.rmtree(previous, ignore_errors=True)
        if not (path.exists() and _exchange(partial, path)):
            if path.exists():
                os.replace(path, previous)
            os.replace(partial, path)
        _sync(path.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, and tell whether the system could (Linux `renameat2`, macOS `renamex_np`)."""
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    here, swap = -100, 2
    if hasattr(libc, "renameat2"):
        return libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0
    if hasattr(libc, "renamex_np"):
        return libc.renamex_np(os.fsencode(one), os.fsencode(other), swap) == 0
    return False


def _carry_over(old: Path, new: Path, drop: Callable[[str], bool]) -> None:
    """Link (or copy) into `new` the files of `old` that `new` does not have and that are not to be dropped."""
    for file in old.rglob("*"):
        inner = file.relative_to(old)
        target = new / inner
        if file.is_dir() or target.exists() or drop(inner.as_posix()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(file, target, follow_symlinks=False)
