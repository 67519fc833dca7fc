"""The loss on examples that a run does not see, at every range of noise levels: whether it learns or remembers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.records import Record, Records
from .lines import Lines
from .streams import Draw, Streams
from .trainer import Examples, Trainer, to_device

FILE = "heldout.jsonl"
"""What a look says: "step", the mean "loss", and under "bins" the mean of every range of levels, from little noise."""
BINS = 10


@dataclass(frozen=True)
class Spread(Draw):
    """Draws of which the noise levels are given.

    Attributes:
        chances: of every position, the place among the levels, in [0, 1).
    """

    chances: Mapping[int, float] = field(default_factory=dict)
    even: ClassVar[bool] = True

    def uniform(self, what: str) -> Tensor:
        """Return one number in [0, 1) per position, float64, on the CPU."""
        if not what.startswith("level"):
            return super().uniform(what)
        return torch.tensor([self.chances[position] for position in self.positions], dtype=torch.float64)


class HeldOut:
    """Measures the loss on held-out examples before the first step, every so many steps, and after the last.

    Every look sees the same crops, noise and levels, of which every range has as many; the losses are those of the
    task before they are weighed. So what changes between two looks is the network. A run ends as one without it.

    Args:
        data: the examples; draw k takes example k, and begins anew after the last.
        every: optimizer steps between two looks.
        draws: pictures per look; at least as many as ranges.
    """

    def __init__(self, data: Examples, *, every: int, draws: int = 10 * BINS) -> None:
        self.data, self.every, self.draws = data, every, draws

    def begin(self, run: Trainer) -> None:
        """Forget looks that are made again, and look at the network before it is trained."""
        if run.main:
            lines = Lines(run.run.folder / FILE)
            lines.cut(0 if run.found is None else run.found.step + 1)
        if run.found is None:
            self.look(run)

    def __call__(self, run: Trainer) -> None:
        """Look, if it is time."""
        if run.step % self.every == 0 or run.step == run.run.steps:
            self.look(run)

    def look(self, run: Trainer) -> None:
        """Write what the examples cost now, and tell the trackers."""
        with run.looking() as main, torch.no_grad():
            found = self.costs(run) if main else None
        if found is None:
            return
        costs, places = found
        bins = [costs[places == k].mean().item() for k in range(BINS)]
        point = {"step": run.step, "loss": math.fsum(bins) / BINS, "bins": bins}
        Lines(run.run.folder / FILE).write([point])
        if run.run.trackers:
            named = {f"heldout_loss/levels_{k}": value for k, value in enumerate(bins)}
            run.accelerator.log({"heldout_loss": point["loss"], **named}, step=run.step)

    def costs(self, run: Trainer) -> tuple[Tensor, Tensor]:
        """Return the loss of every draw, (draws,), and its range of levels."""
        streams = Streams(run.streams.number("held out"))
        mixed = torch.randperm(self.draws, generator=streams.stream("ranges")).tolist()
        chances = {position: (place + 0.5) / self.draws for position, place in enumerate(mixed)}
        found = []
        for first in range(0, self.draws, run.run.batch):
            positions = range(first, min(first + run.run.batch, self.draws))
            rows = [self.data.example(p % len(self.data), streams.at(p)) for p in positions]
            batch = to_device(self.data.collate(rows), run.accelerator.device)
            draw = Spread(streams, positions, run.accelerator.device, chances)
            with run.accelerator.autocast():
                losses = run.task.losses(batch, draw)
            found.append((losses.rows if losses.plain is None else losses.plain).float().cpu())
        return torch.cat(found), torch.tensor([int(BINS * chances[p]) for p in range(self.draws)])


class Picked(Sequence[Record]):
    """Some rows of a sequence, read when they are asked for."""

    def __init__(self, rows: Sequence[Record], numbers: Sequence[int]) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self.rows[k] for k in self.numbers[number]]
        return self.rows[self.numbers[number]]


def apart(records: Records, share: float) -> Records:
    """Return examples of which a share, which follows from their names alone, is held out.

    Examples of one name, such as those of a picture with several captions, stay together. For a hub dataset the number
    of a row is its name.

    Raises:
        ConfigError: when the share leaves nothing on one side.
    """
    local = records.folder is not None
    names = [row.name for row in records.rows] if local else [str(k) for k in range(len(records))]
    ordered = sorted(set(names), key=lambda name: blake2b(name.encode(), digest_size=8).digest())
    count = round(share * len(ordered))
    if not 0 < count < len(ordered):
        what = f"{records.where} has {len(ordered)} examples"
        raise ConfigError(
            f"{what}, of which heldout_share={share} is {count}; it must leave one at least on both sides."
        )
    out = set(ordered[:count])
    sides = [[k for k, name in enumerate(names) if (name in out) is held] for held in (False, True)]
    train, held = (replace(records, rows=Picked(records.rows, numbers)) for numbers in sides)
    return replace(train, held=held)


def check_apart(records: Records) -> None:
    """Raise ConfigError when a picture file that is held out is trained on too."""
    held = records.held
    both = sorted(path.name for path in files_of(held) & files_of(records)) if held is not None else []
    if both:
        raise ConfigError(
            f"{len(both)} pictures are held out and trained on as well, such as {both[0]}; heldout_data_dir must lie "
            f"outside {records.where}."
        )


def files_of(records: Records) -> set[Path]:
    """Return the picture files of a folder's first pictures."""
    if records.folder is None:
        return set()
    found = (row.columns.get("image") for row in records.rows)
    return {path.resolve() for path in found if isinstance(path, Path)}
