"""Every random number of a training run, from its seed and what it is for.

Nothing depends on how a run is split: the k-th example of a run has the same crop, caption, noise and timestep for any
number of processes, workers and accumulated batches, and for a run that was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError

Stream = Callable[[str], torch.Generator]
"""From a purpose to the generator that one example has for it."""


@dataclass(frozen=True)
class Streams:
    """The random streams of a run.

    Attributes:
        seed: of the run.
    """

    seed: int

    def number(self, *purpose: str | int) -> int:
        """Return a number of 63 bits that belongs to a purpose."""
        text = repr((self.seed, *purpose)).encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1

    def stream(self, *purpose: str | int) -> torch.Generator:
        """Return a generator on the CPU that belongs to a purpose."""
        return torch.Generator().manual_seed(self.number(*purpose))

    def at(self, position: int) -> Stream:
        """Return the streams of the example at a position of the run."""
        return partial(self._at, position)

    def _at(self, position: int, what: str) -> torch.Generator:
        return self.stream(what, position)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context in which torch's own generator on the CPU, which fills new layers, begins at a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Draw:
    """The random numbers of a batch's examples, drawn on the CPU.

    Attributes:
        streams: of the run.
        positions: of the examples in the run.
        device: where the numbers are wanted.
        even: whether noise levels are all alike likely, even where a task prefers some.
    """

    streams: Streams
    positions: Sequence[int]
    device: torch.device | str = "cpu"
    even: ClassVar[bool] = False

    def normal(self, what: str, shape: Sequence[int]) -> Tensor:
        """Return normal draws (positions, *shape)."""
        rows = [torch.randn(tuple(shape), generator=self.streams.at(p)(what)) for p in self.positions]
        return torch.stack(rows).to(self.device, non_blocking=True)

    def uniform(self, what: str) -> Tensor:
        """Return one number in [0, 1) per position, float64, on the CPU."""
        rows = [torch.rand((), generator=self.streams.at(p)(what), dtype=torch.float64) for p in self.positions]
        return torch.stack(rows)


@dataclass(frozen=True)
class Order:
    """Which examples a run sees at which step: an endless row of epochs, each a permutation of all examples.

    The position of an example counts from the beginning of the run. An optimizer step takes the next `step_size`
    positions; a batch may hold the end of one epoch and the beginning of the next, so that no example is left out and
    none is seen twice in an epoch.

    Attributes:
        streams: of the run.
        count: examples.
        batch: examples per batch of one process.
        accumulated: batches of one process per optimizer step.
        processes: that train together.
    """

    streams: Streams
    count: int
    batch: int
    accumulated: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("count", "batch", "accumulated", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")

    @property
    def step_size(self) -> int:
        """Examples per optimizer step."""
        return self.batch * self.accumulated * self.processes

    def steps(self, epochs: int) -> int:
        """Return how many optimizer steps see every example `epochs` times at least."""
        return -(-epochs * self.count // self.step_size)

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, in which an optimizer step begins."""
        return step * self.step_size // self.count

    def example(self, position: int) -> int:
        """Return the number of the example at a position of the run."""
        epoch, place = divmod(position, self.count)
        return int(permutation(self.streams, self.count, epoch)[place])

    def positions(self, step: int, number: int, process: int) -> range:
        """Return the positions of a process's batch `number` of an optimizer step."""
        first = step * self.step_size + (number * self.processes + process) * self.batch
        return range(first, first + self.batch)

    def batches(self, process: int, step: int = 0, end: int | None = None) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of a process from an optimizer step on, as (example, position)."""
        while end is None or step < end:
            for number in range(self.accumulated):
                yield [(self.example(p), p) for p in self.positions(step, number, process)]
            step += 1


@dataclass(frozen=True)
class BucketOrder(Order):
    """An order in which all examples of an optimizer step belong to one bucket, as those of one size have to.

    Every bucket has its own endless row of epochs, and gets steps in proportion to its examples: a round as long as an
    epoch has, in an order that is drawn, every step that its buckets fill. What is left of a bucket, less than a step,
    comes first in the next round. So steps stay the same however they are split, and at every end of a round the number
    of times that two examples were seen differs by one at most, if no bucket has fewer examples than a step.

    Attributes:
        buckets: the numbers of the examples of each.
    """

    buckets: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.buckets) or sorted(k for members in self.buckets for k in members) != list(range(self.count)):
            raise InputError(f"The buckets must hold each of the {self.count} examples once, and none may be empty.")

    def turn(self, step: int) -> tuple[int, int]:
        """Return the bucket of an optimizer step, and how many steps it had before in the order of its examples."""
        counts = tuple(len(members) for members in self.buckets)

        def before(number: int) -> int:
            return sum(number * count // self.step_size for count in counts)

        number = self.epoch(step)
        while before(number + 1) <= step:
            number += 1
        return turns(self.streams, counts, self.step_size, number)[step - before(number)]

    def example(self, position: int) -> int:
        """Return the number of the example at a position of the run."""
        step, place = divmod(position, self.step_size)
        bucket, turn = self.turn(step)
        members = self.buckets[bucket]
        epoch, number = divmod(turn * self.step_size + place, len(members))
        return members[int(permutation(self.streams, len(members), epoch, bucket)[number])]


@lru_cache(maxsize=8)
def turns(streams: Streams, counts: tuple[int, ...], size: int, number: int) -> list[tuple[int, int]]:
    """Return the steps of a round of buckets: which bucket, and which of its steps, both from 0."""
    rows = [
        (k, t) for k, count in enumerate(counts) for t in range(number * count // size, (number + 1) * count // size)
    ]
    return [rows[k] for k in torch.randperm(len(rows), generator=streams.stream("turns", number)).tolist()]


@lru_cache(maxsize=64)
def permutation(streams: Streams, count: int, epoch: int, *bucket: int) -> np.ndarray:
    """Return the order of the examples in an epoch, of all or of a bucket."""
    return torch.randperm(count, generator=streams.stream("order", epoch, *bucket)).to(torch.int32).numpy()
