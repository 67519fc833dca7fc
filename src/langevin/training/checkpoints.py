"""Checkpoints of a run: folders `checkpoint-N` that are whole, verified, resumed from, and kept up to a number.

A checkpoint lists its files with their lengths and hashes in `state.json`, which is written last. So a folder that a
kill left half-written is never taken for one, and an old checkpoint is deleted only after the new one was read back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, InputError, WeightsError, did_you_mean
from ..core.files import atomic_folder, read_json
from ..core.logging import get_logger

logger = get_logger(__name__)
STATE = "state.json"
NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk.

    Attributes:
        folder: where it lies.
        step: optimizer steps that were done.
        facts: what `state.json` says beside that.
    """

    folder: Path
    step: int
    facts: Mapping[str, Any]

    def damage(self) -> list[str]:
        """Return what is wrong with its files, one line each."""
        found = []
        for name, (size, digest) in self.facts["files"].items():
            file = self.folder / name
            if not file.is_file():
                found.append(f"{name} is missing")
            elif file.stat().st_size != size:
                found.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
            elif hashed(file) != digest:
                found.append(f"the content of {name} has changed")
        return found

    def verify(self) -> Checkpoint:
        """Return it after reading all of its files.

        Raises:
            WeightsError: when one is missing or changed.
        """
        if wrong := self.damage():
            raise WeightsError(f"{self.folder} is damaged: {'; '.join(wrong)}. Resume from another checkpoint.")
        return self


def hashed(file: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = sha256()
    with file.open("rb") as source:
        while chunk := source.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def read(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder.

    Raises:
        ConfigError: when it is none, or was not finished.
    """
    facts = read_json(folder / STATE)
    if not isinstance(facts.get("step"), int) or not isinstance(facts.get("files"), dict):
        raise ConfigError(f"{folder / STATE} is not the state of a checkpoint.")
    return Checkpoint(folder, facts["step"], facts)


def all_in(folder: Path) -> list[Checkpoint]:
    """Return the finished checkpoints of a run, oldest first."""
    named = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and (path / STATE).is_file()]
    return sorted((read(path) for path in named), key=lambda checkpoint: checkpoint.step)


def save(folder: Path, step: int, write: Callable[[Path], None], facts: Mapping[str, Any]) -> Checkpoint:
    """Write the checkpoint of a step and return it, read back and verified.

    Args:
        write: fills an empty folder.
        facts: what `state.json` says beside the step and the files.
    """
    target = folder / f"checkpoint-{step}"
    with atomic_folder(target, drop=lambda name: True) as partial:
        write(partial)
        files = {
            path.relative_to(partial).as_posix(): (path.stat().st_size, hashed(path))
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / STATE).write_text(json.dumps({**facts, "step": step, "files": files}, indent=1), encoding="utf-8")
    return read(target).verify()


def keep(folder: Path, limit: int | None) -> list[Path]:
    """Delete the oldest checkpoints beyond `limit` and return what was deleted; the newest one always stays.

    Raises:
        InputError: for a limit below 1.
    """
    if limit is None:
        return []
    if limit < 1:
        raise InputError(f"`checkpoints_total_limit` is {limit}; it must be at least 1.")
    old = [checkpoint.folder for checkpoint in all_in(folder)[:-limit]]
    for path in old:
        # Under a name that `sweep` knows, so that a kill leaves no half of a checkpoint.
        gone = path.with_name(f".{path.name}.outdated.partial")
        os.replace(path, gone)
        shutil.rmtree(gone)
    return old


def sweep(folder: Path) -> None:
    """Delete what kills left behind in a run's folder, and beside it of the result (see `core.files.atomic_folder`)."""
    folder = folder.resolve()
    left = [path for place in (folder, folder / "previews") for path in place.glob(".*.????????.partial")]
    for path in (*left, *folder.parent.glob(f".{escape(folder.name)}.????????.partial")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def find(folder: Path, name: str) -> Checkpoint | None:
    """Return the checkpoint that `--resume_from_checkpoint` names, verified.

    Args:
        name: of a folder in the run's folder, or a path to one, or "latest": the newest one that is not damaged, and
            None when there is none yet.

    Raises:
        InputError: when there is none of that name.
        WeightsError: when it is damaged.
    """
    present = all_in(folder)
    if name == "latest":
        for checkpoint in reversed(present):
            if not (wrong := checkpoint.damage()):
                return checkpoint
            logger.warning("%s is damaged (%s) and is passed over.", checkpoint.folder, "; ".join(wrong))
        return None
    for path in (folder / Path(name).name, Path(name)):
        if (path / STATE).is_file():
            return read(path).verify()
    names = [checkpoint.folder.name for checkpoint in present]
    hint = did_you_mean(name, names) if names else "; the folder holds no checkpoint."
    raise InputError(f"{folder} has no checkpoint {name!r}{hint}")
