"""A run as a table: one row of numbers per network call, written before the first call.

A solver turns a grid into rows. A `Plan` is the grid, its rows and what the network predicts: frozen, without tensors,
and shareable between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch

from ..core.errors import InputError
from .grid import Grid, check_strength
from .prediction import Prediction
from .process import Level, Time, between, noised
from .rows import Move, Noise, Row, Run


class Solver(Protocol):
    """A pure function from a grid to rows."""

    @property
    def wants(self) -> Literal["x0", "eps"]:
        """Which prediction the rows combine."""
        ...

    def rows(self, grid: Grid, begin: int = 0) -> tuple[Row, ...]:
        """Return the rows of the network calls from number `begin` on, with no history before that."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One network call, as the loop and the callbacks see it.

    Attributes:
        index: position in this run, from 0.
        count: network calls in this run.
        timestep: what the network is told, a host number.
        level: where the sample is before the step.
        after: where it is afterwards.
        in_scale: factor of the sample on its way into the network.
        last: whether this is the last call of the run.
    """

    index: int
    count: int
    timestep: Time
    level: Level
    after: Level
    in_scale: float
    last: bool


@dataclass(frozen=True)
class Plan:
    """A whole run, known in advance.

    Attributes:
        grid: the levels visited, the end included.
        solver: what writes the rows.
        prediction: what the network predicts.
        init_noise_sigma: standard deviation of the first sample of a run from pure noise.
        scale_input: standard deviation of the data for which samples are brought to unit variance on their way into
            the network (grids with alpha = 1); None hands them over as they are.
        train_steps: length of the training schedule, the unit of `slice`.
        noise_dtype: dtype of the noise of stochastic rows; None means that of the sample.
        noise_seed: seed of the noise of every run, instead of what the caller draws; None leaves it to the caller.
        place: the level of a timestep of the training schedule, for starts between two levels of the grid; None where
            the grid says all.
        first, end: the part of the whole table's network calls that this run makes.
    """

    grid: Grid
    solver: Solver
    prediction: Prediction
    init_noise_sigma: float = 1.0
    scale_input: float | None = None
    train_steps: int = 1000
    noise_dtype: torch.dtype | None = None
    noise_seed: int | None = None
    place: Callable[[Time], Level] | None = None
    first: int = 0
    end: int | None = None

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of this run, one per network call."""
        rows = self.solver.rows(self.grid, self.first)
        return rows if self.end is None else rows[: self.end - self.first]

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """The rows of this run, ready to be followed.

        Raises:
            ConfigError: when the network's output says nothing about the data at one of their levels.
        """
        return tuple(map(self.move, self.rows))

    def move(self, row: Row) -> Move:
        """Return a row, of this run or another one, ready to be followed in a run of this plan."""
        return Move(row, self.prediction, wants=self.solver.wants)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The network calls of this run."""
        count = len(self.rows)
        return tuple(
            Step(
                index=k,
                count=count,
                timestep=row.level.t,
                level=row.level,
                after=row.after,
                in_scale=1.0 if self.scale_input is None else 1.0 / row.level.spread(self.scale_input),
                last=k == count - 1,
            )
            for k, row in enumerate(self.rows)
        )

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The number, from 0, of the step that each network call belongs to."""
        begun = [not row.saved for row in self.rows]
        return tuple(max(sum(begun[: k + 1]) - 1, 0) for k in range(len(begun)))

    @cached_property
    def times(self) -> np.ndarray:
        """What the network is told at each call, float64."""
        return np.array([row.level.t for row in self.rows], dtype=np.float64)

    def position(self, timestep: float) -> int:
        """Return the last network call that is told `timestep`, up to float32 rounding.

        Raises:
            InputError: when there is none.
        """
        nearest = len(self.times) - 1 - int(np.abs(self.times - timestep)[::-1].argmin())
        if not same(timestep, self.times[nearest]):
            raise InputError(
                f"Timestep {timestep:g} is not in the schedule; the nearest is {self.times[nearest]:g}. "
                "Loop over `scheduler.timesteps`."
            )
        return nearest

    def ready(self) -> Plan:
        """Work out steps and moves now instead of at the first call, and return the plan.

        Raises:
            ConfigError: when an output of this kind says nothing about the data at a level where it is needed.
        """
        self.prediction.check(self.steps[0].level)
        self.moves  # noqa: B018
        return self

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any(row.noise is not None or row.lift is not None for row in self.rows)

    def part(self, first: int, end: int | None = None) -> Plan:
        """Return network calls `first` to `end` of this run as a run of its own, which starts without history."""
        stop = len(self.rows) if end is None else end
        if not 0 <= first < stop <= len(self.rows):
            raise InputError(f"Steps {first} to {stop} were asked of a run that has {len(self.rows)}.")
        return replace(self, first=self.first + first, end=self.first + stop)

    def tail(self, strength: float) -> Plan:
        """Return the last part of this run, for a sample that starts from a noised picture.

        A part that is no whole number of steps begins with a shorter one, between two levels of the grid; solvers that
        need even steps begin at the lower of the two.

        Args:
            strength: part of the steps to make, in (0, 1]; at least a part of the last step is made.

        Raises:
            InputError: when `strength` is outside (0, 1].
        """
        check_strength(strength)
        if self.first or self.end is not None:
            raise InputError("`tail` counts the steps of a whole run; take it before `slice` or `part`.")
        steps = len(self.grid) - 1
        whole = int(steps * strength + 1e-6)
        rest = steps * strength - whole
        if rest > 1e-6 and getattr(self.solver, "begins_anywhere", True):
            above, below = self.grid[steps - whole - 1 : steps - whole + 1]
            start = between(above, below, 1.0 - rest, self.place)
            if start.t == above.t:
                whole += 1
            elif start.t != below.t:
                return replace(self, grid=(start, *self.grid[steps - whole :]))
        begin = self.grid[steps - max(min(whole, steps), 1)]
        calls = [k for k, row in enumerate(self.rows) if row.level == begin]
        return self.part(next((k for k in calls if not self.rows[k].saved), calls[-1]))

    def slice(self, start: float | None = None, end: float | None = None) -> Plan:
        """Return the part of this run between two fractions of the training schedule, 0 being pure noise.

        Two models share one run when the first takes `slice(end=f)` and the second `slice(start=f)`.

        Raises:
            InputError: when a fraction is outside [0, 1], no step lies between the two, or timesteps are no steps.
        """
        times = [row.level.t for row in self.rows]
        first, stop = fractions(times, self.train_steps, start, end)
        return self.part(self._boundary(first), self._boundary(stop))

    def _boundary(self, call: int) -> int:
        """Return the first call of the step after which, or within which, network call number `call` lies."""
        if call in (0, len(self.rows)):
            return call
        later = (k for k in range(call, len(self.rows)) if not self.rows[k].saved)
        return next(later, len(self.rows))

    def start(self, noise: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        """Return the first sample: noise alone, or `source` noised to the level of the first step."""
        if source is None:
            return noise * self.init_noise_sigma
        return noised(source, noise, self.steps[0].level)

    def settle(self, step: Step, source: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return `source` noised to where the sample is after a step."""
        return noised(source, noise, step.after)

    def begin(self, noise: Noise | None = None) -> Run:
        """Start a run; `noise` returns standard normal draws in the sample's shape and is needed by stochastic rows."""
        return Run(self.moves, noise, seed=self.noise_seed, dtype=self.noise_dtype)


def fractions(times: Sequence[Time], train_steps: int, start: float | None, end: float | None) -> tuple[int, int]:
    """Return which of the network calls that are told `times` lie between two fractions of the training schedule.

    Raises:
        InputError: when a fraction is outside [0, 1], no call lies between the two, or timesteps are no steps.
    """
    for name, value in (("start", start), ("end", end)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(f"{name} is {value}; it must be between 0 and 1.")
    if min(times) < 0 or (max(times) < 2 and not all(float(t).is_integer() for t in times)):
        raise InputError(
            f"The timesteps of this run, {times[0]:g} to {times[-1]:g}, are not training steps, so they have no "
            "fractions. Take a sampler over a training table, or `part`."
        )
    high = train_steps if start is None else round(train_steps * (1.0 - start))
    low = 0 if end is None else round(train_steps * (1.0 - end))
    first = 0 if start is None else sum(t >= high for t in times)
    stop = len(times) if end is None else sum(t >= low for t in times)
    if first >= stop:
        raise InputError(f"No step of this run lies between {start or 0.0} and {1.0 if end is None else end}.")
    return first, stop


def same(timestep: Time, other: Time) -> bool:
    """Tell whether two timesteps are equal up to float32 rounding."""
    return abs(timestep - other) <= 1e-6 * max(1.0, abs(other))
