"""Files of figures: one JSON object per line, each of a step of a run; nothing in them depends on the time of day."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.files import atomic_write


class Lines:
    """A file of figures that a run adds to.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Add points, which say under "step" where they belong."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(point) + "\n" for point in points)

    def cut(self, step: int) -> None:
        """Forget the lines of a step and after it, which a resumed run writes again."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
            if kept != lines:
                atomic_write(self.path, "".join(kept))

    def read(self) -> list[dict[str, Any]]:
        """Return the points of the file, none where there is no file; half a line, which a kill leaves, is none."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
