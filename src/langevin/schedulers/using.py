"""Schedulers with another solver or other levels than their configuration names."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from ..core.errors import ConfigError, InputError
from ..diffusion.grid import Ask, Grid
from ..diffusion.process import Level
from ..diffusion.table import Solver


def changed(scheduler: Any, *, solver: Any = None, grid: Callable[[Grid], Grid] | None = None) -> Any:
    """Return a copy of the scheduler whose runs use another solver, or the levels that a function makes of its grid.

    Pipelines take it as any other: `pipe.scheduler = pipe.scheduler.using(solver=Restart(...))`. It has no
    configuration of its own and cannot be saved.

    Args:
        solver: a `diffusion.table.Solver`; options of `step` that were meant for the scheduler's own are errors.
        grid: gets the levels that the configuration means, the end included, and returns those to visit.
    """
    made = copy.copy(scheduler)
    if solver is not None:
        if getattr(solver, "place", made) is None:
            solver = replace(solver, place=partial(placed, scheduler))
        made._solver = partial(fixed, solver, scheduler.step_options)
    if grid is not None:
        made._grid = lambda ask: grid(scheduler._grid(ask))
    made.save_config = made.save_pretrained = refused
    made.num_inference_steps = made._begin = None
    made._forget(None)
    return made


def placed(scheduler: Any, level: Level) -> Level:
    """Return the level that the scheduler makes of its own sigma for `level`, where it takes sigmas as they are."""
    try:
        own = type(scheduler)._grid(scheduler, Ask(sigmas=(scheduler._sigma(level), 0.0)))[0]
    except InputError:
        return level
    return own if math.isclose(own.ratio, level.ratio, rel_tol=1e-6) else level


def fixed(solver: Solver, defaults: Mapping[str, Any], **options: Any) -> Solver:
    """Return `solver`; raise ConfigError for options of `step` that were meant for another one."""
    if lost := [name for name, value in options.items() if value != defaults[name]]:
        raise ConfigError(f"{', '.join(lost)}: no option of the solver set by `using`; give it to that solver.")
    return solver


def refused(*args: Any, **options: Any) -> NoReturn:
    """Raise ConfigError in place of saving."""
    raise ConfigError(
        "A scheduler made by `using` cannot be saved: a configuration names no solver and no grid function. "
        "Save the scheduler that it was made from, and call `using` after loading."
    )
