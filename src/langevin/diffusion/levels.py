"""The levels that each family of processes makes of what a run is asked to visit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.errors import InputError
from . import grid as grids
from .grid import Ask, Grid
from .process import Level, TableProcess, Time, angular, preserving


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
            return grids.at_ratios(process, grids.between_logs(process, times), end, label=told)
        return grids.at_times(process, told(times), end)

    if ask.timesteps is not None:
        return at(np.array(grids.check_descending("timesteps", ask.timesteps, low=0, high=len(process) - 1)))
    if ask.sigmas is not None:
        *levels, last = grids.check_levels(ask.sigmas)
        return grids.at_ratios(process, levels, preserving(-1, last), label=told)
    if ask.count is None:
        return grids.at_times(process, range(len(process) - 1, -1, -1), end)
    if (chosen := ratios(ask.count)) is not None:
        return grids.at_ratios(process, chosen, end, label=told)
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
