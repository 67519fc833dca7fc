"""Pictures that show on the way what a run has learned: the same prompts and the same noise at every look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.files import atomic_file
from ..core.images import grid
from .streams import Streams
from .trainer import Trainer


class Preview:
    """Draws pictures with the pipeline that is trained, every so many steps and after the last.

    A sheet with one row per prompt is written to `previews/step-N.png` and handed to the trackers.

    Args:
        pipe: the pipeline, which holds the trained networks.
        prompts: what to draw.
        count: pictures per prompt.
        every: optimizer steps between two looks.
        call: further arguments of the pipeline's call.
    """

    def __init__(
        self, pipe: Any, prompts: Sequence[str], *, count: int = 4, every: int = 100, call: dict[str, Any] | None = None
    ) -> None:
        self.pipe, self.prompts, self.count, self.every, self.call = pipe, list(prompts), count, every, call or {}

    def __call__(self, run: Trainer) -> None:
        """Look, if it is time."""
        if not run.main or not (run.step % self.every == 0 or run.step == run.run.steps):
            return
        training = {name: module.training for name, module in run.bare.items()}
        for module in run.bare.values():
            module.eval()
        try:
            with run.averaged():
                rows = self.drawn(run.streams)
        finally:
            for name, module in run.bare.items():
                module.train(training[name])
        sheet = grid([picture for row in rows for picture in row], len(rows), self.count)
        with atomic_file(self.path(run.run.folder, run.step)) as partial:
            sheet.save(partial, "PNG")
        run.show("validation", sheet)

    @torch.no_grad()
    def drawn(self, streams: Streams) -> list[list[Any]]:
        """Return the pictures, one row per prompt."""
        self.pipe.set_progress_bar_config(disable=True)
        seeds = [streams.number("preview", k) for k in range(self.count)]
        return [self.pipe([prompt] * self.count, seed=seeds, **self.call).images for prompt in self.prompts]

    @staticmethod
    def path(folder: Path, step: int) -> Path:
        """Return the file of the sheet of a step."""
        return folder / "previews" / f"step-{step}.png"
