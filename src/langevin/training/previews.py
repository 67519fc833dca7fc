"""Pictures that show on the way what a run has learned: the same calls with the same noise at every look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.files import atomic_file
from ..core.images import grid
from .streams import Streams
from .trainer import Trainer


class Preview:
    """Draws pictures with the pipeline that is trained, every so many steps and after the last.

    A sheet is written to `previews/step-N.png` and handed to the trackers. Its rows begin with the picture that the
    pipeline is shown, where there is one.

    Args:
        pipe: the pipeline, which holds the trained networks.
        rows: for every row of the sheet the arguments of a call that draws `count` pictures.
        count: pictures per row.
        every: optimizer steps between two looks.
    """

    def __init__(self, pipe: Any, rows: Sequence[Mapping[str, Any]], *, count: int, every: int) -> None:
        self.pipe, self.rows, self.count, self.every = pipe, list(rows), count, every

    def __call__(self, run: Trainer) -> None:
        """Look, if it is time."""
        if not (run.step % self.every == 0 or run.step == run.run.steps):
            return
        with run.looking() as main:
            rows = self.drawn(run.streams) if main else []
        if not main:
            return
        sheet = grid([picture for row in rows for picture in row], len(rows), len(rows[0]))
        with atomic_file(self.path(run.run.folder, run.step)) as partial:
            sheet.save(partial, "PNG")
        run.show("validation", sheet)

    @torch.no_grad()
    def drawn(self, streams: Streams) -> list[list[Any]]:
        """Return the pictures of every row."""
        self.pipe.set_progress_bar_config(disable=True)
        seeds = [streams.number("preview", k) for k in range(self.count)]
        drawn = [self.pipe(**row, seed=seeds).images for row in self.rows]
        return [
            [row["image"].resize(pictures[0].size), *pictures] if "image" in row else pictures
            for row, pictures in zip(self.rows, drawn, strict=True)
        ]

    @staticmethod
    def path(folder: Path, step: int) -> Path:
        """Return the file of the sheet of a step."""
        return folder / "previews" / f"step-{step}.png"
