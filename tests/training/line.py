"""The smallest task: a line through points, with noise of its own at every step. Run as a script it can be killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.training.average import Decay
from langevin.training.streams import Draw, Stream
from langevin.training.trainer import Losses, Run, Trainer


class Points:
    """Points of y = 2 x + 1, moved a little at random."""

    def __init__(self, count: int = 10, broken: Sequence[int] = ()) -> None:
        self.count, self.broken = count, set(broken)

    def __len__(self) -> int:
        return self.count

    def example(self, number: int, stream: Stream) -> Tensor:
        x = number / self.count + 1e-2 * float(torch.rand((), generator=stream("point")))
        return torch.tensor([x, float("nan") if number in self.broken else 2 * x + 1])

    def collate(self, examples: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(examples))


class Line:
    """Trains a layer with dropout, and a parameter that gets no gradient when `idle` is set."""

    def __init__(self, *, idle: bool = False, locked: bool = False) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
        if idle:
            net.register_parameter("idle", nn.Parameter(torch.zeros(2)))
        self.networks: dict[str, nn.Module] = {"net": net.requires_grad_(not locked)}
        self.net = net

    def groups(self) -> list[dict]:
        return [{"params": [p for p in self.net.parameters() if p.requires_grad], "lr": 0.05}]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Do nothing."""

    def losses(self, batch: Tensor, draw: Draw) -> Losses:
        x, y = batch[:, :1] + 0.01 * draw.normal("noise", (1,)), batch[:, 1:]
        level = (draw.uniform("level") * 10).long()
        return Losses((self.run(x) - y).square().flatten(1).mean(1), level)

    def run(self, x: Tensor) -> Tensor:
        net = self.networks["net"]
        return net(x)

    def save(self, folder: Path) -> None:
        save_file(self.net.state_dict(), folder / "net.safetensors")

    def load(self, folder: Path) -> None:
        self.net.load_state_dict(load_file(folder / "net.safetensors"))


def trainer(folder: Path, task: Line | None = None, data: Points | None = None, watch=(), **options) -> Trainer:
    """Return a trainer of twelve steps with checkpoints after every fourth."""
    settings = {
        "steps": 12,
        "seed": 3,
        "batch": 2,
        "accumulated": 2,
        "average": Decay(0.9),
        "checkpoint_every": 4,
        "log_every": 3,
        "lr_scheduler": "cosine",
        "warmup": 2,
    }
    run = Run(folder, **{**settings, **options})
    return Trainer(task or Line(), Points() if data is None else data, run, watch=watch)


def bits(one: Trainer) -> bytes:
    """Return the bits of everything that a run ends with."""
    kept = [p.detach() for p in one.task.net.parameters()] + (one.average.values if one.average else [])
    state = one.optimizer.state_dict()["state"]
    kept += [value for part in state.values() for value in part.values()]
    return b"".join(tensor.double().numpy().tobytes() for tensor in kept) + (one.run.folder / "log.jsonl").read_bytes()


if __name__ == "__main__":
    run = trainer(
        Path(sys.argv[1]),
        steps=40,
        checkpoint_every=3,
        checkpoint_limit=2,
        resume="latest",
        watch=[lambda t: time.sleep(float(sys.argv[2]))],
    )
    run.fit()
    Path(sys.argv[1], "bits").write_bytes(bits(run))
