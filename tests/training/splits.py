"""Trainings of the smallest task by one of several processes, which write down what they saw and ended with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langevin.training.streams import Draw
from langevin.training.trainer import Losses
from tests.training.line import Line, Points, trainer


class Noted(Line):
    """Writes down the examples, noise and level at every position of the run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net[2].p = 0.0
        self.seen: dict[int, list[float]] = {}

    def losses(self, batch: Tensor, draw: Draw) -> Losses:
        noise, level = draw.normal("noise", (1,)), draw.uniform("level")
        self.seen.update(zip(draw.positions, torch.cat([batch, noise, level[:, None]], 1).tolist(), strict=True))
        return super().losses(batch, draw)


class Failing(Noted):
    """Fails in one process, after four batches."""

    def losses(self, batch: Tensor, draw: Draw) -> Losses:
        if len(self.seen) >= 4 and torch.distributed.get_rank() == 1:
            raise RuntimeError("this process fails")
        return super().losses(batch, draw)


KINDS = {"plain": Noted, "failing": Failing}


def train(folder: str, options: dict[str, Any], kind: str = "plain", broken: int | None = None) -> None:
    """Train and write `seen-RANK.json` and `weights-RANK.pt`."""
    idle = options.pop("idle", False)
    task = KINDS[kind](idle=idle)
    run = trainer(Path(folder), task=task, data=Points(broken=[] if broken is None else [broken]), **options)
    run.fit()
    rank = run.accelerator.process_index
    (Path(folder) / f"seen-{rank}.json").write_text(json.dumps(task.seen))
    kept = [p.detach() for p in task.net.parameters()] + run.average.values
    torch.save(kept, Path(folder) / f"weights-{rank}.pt")
