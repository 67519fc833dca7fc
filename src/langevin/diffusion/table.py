"""A run as a table: one row of numbers per network call, written before the first call.

A solver turns a grid into rows. A `Plan` is the grid, its rows and what the network predicts: frozen, without tensors,
and shareable between threads. A `Run` is the state of one run of a plan: the past predictions and a saved sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, Protocol

import numpy as np
import torch

from ..core.errors import InputError
from ..core.rng import normal, seeded
from .grid import Grid, check_strength
from .prediction import Prediction, Reading, mix
from .process import Level, Time, between
from .score_sde import langevin

Noise = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """One network call and the linear step that follows it.

        x' = sample * x + saved * x_saved + sum_j outputs[j] * m_j + direction * eps + data * x_0 + noise * z

    m_0 is the present prediction, m_1 ... the remembered ones, newest first, each x_0 or eps as the solver wants; eps
    is the network's own noise estimate, free of bounds; x_0 is its estimate of the data, for solvers that want eps, at
    levels where x and eps do not give it; z is standard normal.

    Attributes:
        level: where the network is asked.
        after: where x' sits.
        noise: None draws nothing; 0.0 draws (to keep a shared stream in step) and adds nothing.
        keep: which of (m_0, m_1, ...) are remembered.
        save: whether x is saved, before the step.
        lift: coefficient of noise that is added to x before the prediction is read (churn); None draws nothing.
        read: the level at which the output is read, where it is not `level`.
        spread: log variances between which a learned variance interpolates; then `noise` only says whether to draw.
        snr: the row is a step of Langevin dynamics at this signal-to-noise ratio (`score_sde.langevin`) instead.
    """

    level: Level
    after: Level
    sample: float = 0.0
    outputs: tuple[float, ...] = (0.0,)
    direction: float = 0.0
    saved: float = 0.0
    noise: float | None = None
    keep: tuple[int, ...] = ()
    save: bool = False
    lift: float | None = None
    read: Level | None = None
    spread: tuple[float, float] | None = None
    snr: float | None = None
    data: float = 0.0


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
        return Run(self, noise)


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


def noised(source: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
    """Return alpha * source + sigma * noise."""
    return torch.add(source if level.alpha == 1.0 else level.alpha * source, noise, alpha=level.sigma)


def noised_each(source: torch.Tensor, noise: torch.Tensor, levels: Sequence[Level]) -> torch.Tensor:
    """Return row k of the batch noised to `levels[k]`; a single level serves every row."""
    table = torch.tensor([(level.alpha, level.sigma) for level in levels], dtype=torch.float64).T
    return noised_at(table, torch.arange(len(levels)), source, noise)


def noised_at(table: torch.Tensor, positions: torch.Tensor, source: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return row k noised to the level whose alpha and sigma stand in column `positions[k]` of `table`."""
    alpha, sigma = gathered(table, positions, source)
    return alpha * source + sigma * noise


def velocity_at(
    table: torch.Tensor, positions: torch.Tensor, source: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return the target of v-prediction at the same levels, alpha * eps - sigma * x_0 (Salimans & Ho 2202.00512)."""
    alpha, sigma = gathered(table, positions, source)
    return alpha * noise - sigma * source


def gathered(table: torch.Tensor, positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the columns of `table`, shape (n, steps), at `positions`, shaped to broadcast against `like`."""
    shape = (-1, *(1 for _ in like.shape[1:])) if positions.ndim else ()
    return table.to(like.dtype).to(like.device)[:, positions.to(like.device).long()].reshape(len(table), *shape)


class Move:
    """A row with all of its step that is known before it, for one kind of prediction.

    Attributes:
        reading: how the output is read.
        linear: the coefficients of (x, output) in x' where nothing but these two enters, or None. Worked out in
            float64, they lose nothing to a detour over an x_0 that is much smaller than x.
        draws: whether it draws noise.
    """

    __slots__ = ("draws", "linear", "reading", "row")

    def __init__(self, row: Row, prediction: Prediction, *, wants: Literal["x0", "eps"]) -> None:
        level = row.read or row.level
        if level.alpha == 0:
            prediction.check(level)
        self.row, self.reading = row, prediction.at(level)
        self.draws = row.noise is not None or row.lift is not None
        self.linear = None if prediction.bounded else linear(row, self.reading, wants=wants)


def linear(row: Row, reading: Reading, *, wants: Literal["x0", "eps"]) -> tuple[float, float] | None:
    """Return the coefficients of (x, output) in x' by an unbounded reading, None where x' holds anything else.

    The output is never handed on as it is, so x' is a tensor of its own.
    """
    if row.keep or row.saved or row.snr is not None or any(row.outputs[1:]):
        return None
    present = reading.of_data if wants == "x0" else reading.of_noise
    shares = [(row.outputs[0], present), (row.direction, reading.of_noise), (row.data, reading.of_data)]
    of_x = row.sample + sum(c * pair[0] for c, pair in shares if c)
    of_output = sum(c * pair[1] for c, pair in shares if c)
    of_x = 1.0 if math.isclose(of_x, 1.0, rel_tol=1e-14) else of_x
    return (of_x, of_output) if of_output and of_x else None


class Run:
    """The state of a run: past predictions, newest first, and a saved sample; half precision is stepped in float32."""

    def __init__(self, plan: Plan, noise: Noise | None = None) -> None:
        self.plan = plan
        self.noise = noise
        self.stream = None if plan.noise_seed is None else seeded(plan.noise_seed)
        self.history: tuple[torch.Tensor, ...] = ()
        self.saved: torch.Tensor | None = None
        self.mean: torch.Tensor | None = None
        """The last sample without its fresh noise."""
        self._last: tuple[Reading, torch.Tensor, torch.Tensor] | None = None
        self._data: torch.Tensor | None = None

    @property
    def x0(self) -> torch.Tensor | None:
        """The estimate of the data at the last network call, as precise as the arithmetic; None before the first."""
        if self._data is None and self._last is not None:
            reading, x, output = self._last
            self._data = reading.data(x, output)
        return self._data

    def advance(self, x: torch.Tensor, output: torch.Tensor, index: int) -> torch.Tensor:
        """Return the sample after step `index`, given the sample before it and the network's output."""
        return self.apply(self.plan.moves[index], x, output, self.noise)

    def apply(self, move: Move, x: torch.Tensor, output: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        """Return the sample after `move`; remembers what later ones need."""
        dtype, row, reading, variance = x.dtype, move.row, move.reading, None
        x, output = widen(x), widen(output)
        if self.plan.prediction.variance is not None:
            output, variance = self.plan.prediction.split(output, x)
        if self.stream is not None:
            kind = self.plan.noise_dtype or dtype
            noise = partial(normal, x.shape, generator=self.stream, device=x.device, dtype=kind)
        if row.lift is not None:
            x = torch.add(x, draw(noise), alpha=row.lift)
        self._last, self._data = (reading, x, output), None
        if row.snr is not None:
            x = langevin(x, reading.noise(x, output) / -reading.level.sigma, draw(noise), row.snr)
            return cast(x, dtype)
        if row.save:
            self.saved = x
        if move.linear is not None:
            self.history = ()
            x = mix(move.linear, x, output)
        else:
            x = self.combine(row, reading, x, output)
        self.mean = x
        if row.noise is not None:
            z, deviation = draw(noise), self.deviation(row, variance)
            if isinstance(deviation, torch.Tensor):
                x = x + deviation * z
            elif deviation:
                x = torch.add(x, z, alpha=deviation)
        return cast(x, dtype)

    def combine(self, row: Row, reading: Reading, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the sum of `row` over x, what is remembered and what is read; remember what the row keeps."""
        if self.plan.solver.wants == "x0":
            present = self._data = reading.data(x, output)
        else:
            present = reading.bounded_noise(x, output)
        models = (present, *self.history)
        terms = [*zip(row.outputs, models, strict=False), (row.sample, x), (row.saved, self.saved)]
        if row.direction:
            terms.append((row.direction, reading.noise(x, output)))
        if row.data:
            terms.append((row.data, reading.data(x, output)))
        self.history = tuple([models[k] for k in row.keep])
        return total(terms)

    def deviation(self, row: Row, variance: torch.Tensor | None) -> float | torch.Tensor:
        """Return the standard deviation of the row's noise, a tensor when the network predicts the variance.

        "learned_range" is Nichol & Dhariwal 2021 (2102.09672), eq. 15, with v = (output + 1) / 2.
        """
        if not row.noise or row.spread is None:
            return row.noise or 0.0
        if variance is None:
            raise InputError("The variance is to be learned, but the network's output has no channels for it.")
        if self.plan.prediction.variance == "learned":
            return variance.clamp(min=1e-20).sqrt()
        low, high = row.spread
        return torch.exp((variance + 1.0) * (0.25 * (high - low)) + 0.5 * low)


def widen(x: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32, anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `x` in `dtype`; as it is, and without a call, where it is that already."""
    return x if x.dtype is dtype else x.to(dtype)


def draw(noise: Noise | None) -> torch.Tensor:
    """Call `noise`, widened; raise InputError when there is none."""
    if noise is None:
        raise InputError("This sampler draws noise at every step; pass `noise`, a callable that returns it.")
    return widen(noise())


def total(terms: list[tuple[float, torch.Tensor | None]]) -> torch.Tensor:
    """Return the sum of coefficient * tensor, leaving out zero coefficients."""
    (first, tensor), *rest = [(c, t) for c, t in terms if c != 0.0] or [(0.0, terms[0][1])]
    result: torch.Tensor = first * tensor  # type: ignore[operator, assignment]
    for coefficient, tensor in rest:
        result = torch.add(result, tensor, alpha=coefficient)  # type: ignore[arg-type]
    return result
