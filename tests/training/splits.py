"""Trainings of the smallest task by one of several processes, which write down what they saw and ended with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.training.streams import Draw
from langevin.training.trainer import Losses, Trainer
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


class Chain(nn.Module):
    """Layers, some of them in a list, as the blocks of networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)[:, :1]


class Chained(Noted):
    """Trains such layers, those in the list with a learning rate of their own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        torch.manual_seed(0)
        self.net = Chain()
        self.networks = {"net": self.net}

    def groups(self) -> list[dict]:
        rest = [*self.net.first.parameters(), *self.net.last.parameters()]
        return [{"params": rest, "lr": 0.02}, {"params": [*self.net.blocks.parameters()], "lr": 0.01}]


KINDS = {"plain": Noted, "failing": Failing, "chained": Chained}


def held(run: Trainer) -> dict[str, int]:
    """Return the numbers that this process holds: of weights, their average and the optimizer's state."""

    def count(parts: Iterable[Tensor]) -> int:
        return sum(getattr(part, "_local_tensor", part).untyped_storage().nbytes() // 4 for part in parts if part.ndim)

    states = [value for state in run.optimizer.state.values() for value in state.values()]
    networks = {id(net): net for group in (run.bare, run.task.networks) for net in group.values()}.values()
    weights = {id(p): p for net in networks for p in net.parameters()}.values()
    return {"weights": count(weights), "average": count(run.average.values), "optimizer": count(states)}


def train(folder: str, options: dict[str, Any], kind: str = "plain", broken: int | None = None) -> None:
    """Train and write `seen-RANK.json`, `held-RANK.json` (while it trains) and `weights-RANK.pt`."""
    idle, pause = options.pop("idle", False), options.pop("pause", 0)
    task, found = KINDS[kind](idle=idle), {}
    data = Points(broken=[] if broken is None else [broken])
    look = [lambda run: found.update(held(run)), lambda run: time.sleep(pause)]
    run = trainer(Path(folder), task=task, data=data, watch=look, **options)
    run.fit()
    rank = run.accelerator.process_index
    (Path(folder) / f"seen-{rank}.json").write_text(json.dumps(task.seen))
    (Path(folder) / f"held-{rank}.json").write_text(json.dumps(found))
    kept = [p.detach() for p in task.net.parameters()] + run.average.values
    torch.save(kept, Path(folder) / f"weights-{rank}.pt")
