"""Tensors on the disk by key, as a run keeps what a network said of its examples.

They lie in files of some entries each. A file has the hash of its bytes for a name and is whole or absent, so a kill
loses no more than what was not written yet, and a file that was damaged is known by its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.files import atomic_write
from ...core.logging import get_logger

logger = get_logger(__name__)
ENTRIES = 256
"""Entries of a file."""
NAME = re.compile(r"latents-([0-9a-f]{32})\.safetensors")


class Shelf:
    """Entries of named tensors.

    Args:
        folder: where they lie; it may be shared by runs, and deleted between them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Path] = {}
        self._files: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind on the way into another process."""
        return {**self.__dict__, "_files": {}}

    def lacking(self, wanted: Collection[str], *, verify: bool) -> list[str]:
        """Find entries and return those that are not there, in their order.

        Args:
            verify: read every file that holds one, and delete those that are damaged; a warning names them.
        """
        rest = set(wanted) - set(self.places)
        for file in sorted(self.folder.glob("latents-*.safetensors")) if rest else []:
            name = NAME.fullmatch(file.name)
            if name is None:
                continue
            found = entries(file)
            if found is not None and not (useful := rest & found):
                continue
            if verify and (found is None or digest(file.read_bytes()) != name[1]):
                logger.warning("%s is damaged and was deleted; its entries are computed again.", file)
                file.unlink(missing_ok=True)
            elif found is not None:
                self.places.update(dict.fromkeys(useful, file))
                rest -= useful
        return [key for key in wanted if key not in self.places]

    def read(self, key: str) -> dict[str, Tensor]:
        """Return an entry that was found, by the names of its tensors."""
        from safetensors import safe_open

        file = self.places[key]
        if file not in self._files:
            self._files[file] = safe_open(file, "pt")
        held = self._files[file]
        return {name: held.get_tensor(f"{key}.{name}") for name in ("mean", "std")}

    def write(self, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write entries as one file."""
        from safetensors.torch import save

        content = save({f"{key}.{name}": tensor for key, entry in found.items() for name, tensor in entry.items()})
        file = self.folder / f"latents-{digest(content)}.safetensors"
        atomic_write(file, content)
        self.places.update(dict.fromkeys(found, file))


def entries(file: Path) -> set[str] | None:
    """Return the keys of the entries in a file, or None when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as held:
            return {name.rpartition(".")[0] for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None


def digest(*parts: bytes) -> str:
    """Return a hash of bytes in 32 hexadecimal digits."""
    found = blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()
