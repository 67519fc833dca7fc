"""Grids: the levels that processes make of timesteps and noise levels, and of what a run is asked to visit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from ..core.errors import ConfigError, InputError
from . import grid as grids
from .grid import Ask, Grid
from .process import Level, TableProcess, Time, angular, flow, flow_sigma, preserving


def at_times(process: TableProcess, times: Sequence[Time], end: Level) -> Grid:
    """Return the grid of a table process at the given times, followed by `end`."""
    return (*(process.level(t) for t in times), end)


def at_ratios(
    process: TableProcess,
    ratios: Sequence[float] | np.ndarray,
    end: Level,
    *,
    label: Callable[[np.ndarray], Sequence[Time]] = lambda times: times.tolist(),
) -> Grid:
    """Return the grid whose levels have sigma / alpha equal to `ratios`, followed by `end`.

    Args:
        label: turns the process's own times of these levels into the timesteps that the network is told.
    """
    times = label(np.array([process.time(r) for r in ratios]))
    return (*(preserving(t, float(r)) for t, r in zip(times, ratios, strict=True)), end)


def at_flow(sigmas: np.ndarray, steps: int, end: Level) -> Grid:
    """Return the grid on straight paths at `sigmas`, followed by `end`; timesteps are steps * sigma, rounded down."""
    times = grids.whole(sigmas * steps, np.floor)
    return (*(flow(t, float(s)) for t, s in zip(times, sigmas, strict=True)), end)


def between_logs(process: TableProcess, times: np.ndarray) -> np.ndarray:
    """Return the ratios at fractional times of a table, interpolated linearly in log(sigma / alpha).

    At evenly spaced times these are k-diffusion's levels for models that were trained on a table
    (`DiscreteSchedule.get_sigmas`), the sampling code that came with Karras et al. 2022 (2206.00364).
    """
    with np.errstate(divide="ignore"):
        logs = np.log(process.ratios)
    return np.exp(np.interp(times, np.arange(len(process)), logs))


def exploding(grid: Grid) -> Grid:
    """Return the same grid in the space where samples are divided by alpha."""
    return tuple(level.exploding() for level in grid)


def upwards(grid: Grid) -> Grid:
    """Return the grid in reverse, for runs from data to noise; the network is told the time at the end of each step."""
    up = grid[::-1]
    return (*(Level(after.t, a.alpha, a.sigma) for a, after in pairwise(up)), up[-1])


def interpolated(grid: Grid, ratio: float) -> Level:
    """Return a level of the same process as `grid` at sigma / alpha = `ratio`, its timestep interpolated in the grid.

    Timesteps are taken to be linear in sigma on straight paths, elsewhere in log sigma.

    Raises:
        ConfigError: when the levels of the grid are of no known process.
    """
    noisy = [level for level in reversed(grid) if level.sigma > 0 and (level.alpha > 0 or level.sigma == 1)]
    inner = [level for level in noisy if level.alpha > 0]
    if all(level.alpha == 1 for level in inner):
        made = Level(0, 1.0, ratio)
    elif all(math.isclose(level.alpha**2 + level.sigma**2, 1) for level in inner):
        made = preserving(0, ratio)
    elif all(math.isclose(level.alpha + level.sigma, 1) for level in inner):
        made, inner = flow(0, flow_sigma(ratio)), noisy
    else:
        raise ConfigError("The levels of this grid belong to no known process; name one between them by `place`.")
    straight = made.alpha < 1 and not math.isclose(made.alpha**2 + made.sigma**2, 1)
    places = [level.sigma if straight else math.log(level.ratio) for level in inner]
    t = float(np.interp(made.sigma if straight else math.log(ratio), places, [level.t for level in inner]))
    whole_times = all(isinstance(level.t, int) for level in inner)
    return Level(round(t) if whole_times else t, made.alpha, made.sigma)


def on_table(
    ask: Ask,
    process: TableProcess,
    end: Level,
    *,
    spaced: Callable[[int], np.ndarray],
    ratios: Callable[[int], np.ndarray | None],
    label: Callable[[np.ndarray], Sequence[Time]] | None,
) -> Grid:
    """Return variance-preserving levels of a trained table, followed by `end`.

    Args:
        spaced: returns the times of so many steps.
        ratios: returns the noise levels sigma / alpha of so many steps where a schedule chooses them, else None.
        label: turns the process's times into the timesteps that the network is told. None tells the times themselves,
            and levels between whole ones are k-diffusion's.

    Raises:
        InputError: for timesteps or sigmas that do not descend, or timesteps outside the table.
    """

    def told(times: np.ndarray) -> Sequence[Time]:
        return times.tolist() if label is None else label(times)

    def at(times: np.ndarray) -> Grid:
        if label is None:
            return at_ratios(process, between_logs(process, times), end, label=told)
        return at_times(process, told(times), end)

    if ask.timesteps is not None:
        return at(np.array(grids.check_descending("timesteps", ask.timesteps, low=0, high=len(process) - 1)))
    if ask.sigmas is not None:
        *levels, last = grids.check_levels(ask.sigmas)
        return at_ratios(process, levels, preserving(-1, last), label=told)
    if ask.count is None:
        return at_times(process, range(len(process) - 1, -1, -1), end)
    if (chosen := ratios(ask.count)) is not None:
        return at_ratios(process, chosen, end, label=told)
    return at(spaced(ask.count))


def on_paths(
    ask: Ask, steps: int, shift: float, *, low: float, terminal: float | None = None, schedule: str | None = None
) -> list[float]:
    """Return noise levels sigma on straight paths, the end at 0 left out.

    A number of steps and own sigmas are shifted, stretched to end at `terminal` and respaced by `schedule`; own
    timesteps are taken as they are.

    Args:
        steps: length of the training table; timesteps are steps * sigma.
        low: the lowest level of a number of steps, before the shift.

    Raises:
        InputError: for levels that do not descend, lie outside [0, 1], or hold nothing but 0.
    """
    if ask.timesteps is not None:
        levels = np.array(grids.check_descending("timesteps", ask.timesteps, low=0, high=steps)) / steps
    elif ask.open:
        levels = grids.shifted(np.linspace(1.0, 1 / steps, steps), shift)
    else:
        levels = np.linspace(1.0, low, ask.count or 0)
        if ask.sigmas is not None:
            own = grids.check_descending("sigmas", ask.sigmas, low=0, high=1)
            levels = np.array(own if own[-1] > 0 else own[:-1])
        levels = grids.reshaped(levels, shift, terminal=terminal, schedule=schedule)
    if not len(levels) or not levels[-1] > 0:
        raise InputError("The network cannot be asked at sigma = 0, the end of every run; leave it out.")
    return levels.tolist()


def between_ends(
    ask: Ask, steps: int, high: float, low: float, *, end: float, schedule: str, **shape: float
) -> list[float]:
    """Return noise levels from `high` to `low` by a sigma schedule, followed by `end`; own ones as they are.

    Args:
        steps: how many there are if nothing is asked for.
        shape: options of the schedule.
    """
    if ask.sigmas is not None:
        return grids.check_levels(ask.sigmas)
    return [*grids.SCHEDULES[schedule](ask.count or steps, high, low, **shape).tolist(), end]


def on_angles(ask: Ask, steps: int, *, trained: Sequence[float] | None = None) -> Grid:
    """Return variance-preserving levels whose timesteps are their angles in quarter turns, from 1 down to 0.

    Args:
        trained: the levels sigma of every run that names none itself, its end included.

    Raises:
        InputError: for levels that do not descend or lie outside [0, 1], or another number of steps than `trained` has.
    """
    name, own = ("sigmas", ask.sigmas) if ask.sigmas is not None else ("trained_betas", trained)
    if ask.timesteps is not None:
        levels = [*grids.sines(grids.check_descending("timesteps", ask.timesteps, low=0, high=1)), 0.0]
    elif own is not None:
        levels = grids.check_descending(name, own, low=0, high=1)
    else:
        levels = grids.squared_sine((ask.count or steps) + 1).tolist()
    if ask.count not in (None, len(levels) - 1):
        raise InputError(f"num_inference_steps is {ask.count}, but trained_betas name {len(levels) - 1} steps.")
    if len(levels) < 2 or not levels[-2] > 0:
        raise InputError("A run needs a noise level above 0 to start from and another one to end at.")
    return tuple(map(angular, levels))
