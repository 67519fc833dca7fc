"""The state of a run: one object per call, so that several threads may use one pipeline at once.

Callbacks receive the pipeline itself. Its documented properties (`guidance_scale`, `num_timesteps`, `interrupt`, ...)
are `RunField`s: they read and write the run that is in progress in the thread that asks. A pipeline whose `__call__` is
written outside this library has a loop of its own and no run; its values belong to the thread, its switch to all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from .inputs import Call


@dataclass(eq=False)
class RunState:
    """What one call keeps to itself.

    Attributes:
        call: the call, its pipeline and its arguments.
        values: the documented per-run values, such as "guidance_scale": the call's arguments, which callbacks may
            change, and what the run adds.
        interrupt: set to True, from a callback or from another thread, to stop after the present step.
    """

    call: Call
    values: dict[str, Any] = field(default_factory=dict)
    interrupt: bool = False


_stack: ContextVar[tuple[RunState, ...]] = ContextVar("langevin_runs", default=())
_active: WeakKeyDictionary[Any, list[RunState]] = WeakKeyDictionary()
_lock = threading.Lock()
_own_values = threading.local()
_own_switches: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@contextmanager
def running(call: Call) -> Iterator[RunState]:
    """Open the run of a call in this thread; afterwards what waits on the CPU between runs is there again.

    Raises:
        ConfigError: when another thread uses a pipeline whose networks wait on the CPU.
    """
    pipe, run = call.pipe, RunState(call, dict(call.given))
    with _lock:
        runs = _active.setdefault(pipe, [])
        if runs and pipe._offload is not None and current(pipe) is None:
            raise ConfigError("Networks that wait on the CPU serve one call at a time; wait for the other one.")
        runs.append(run)
    token = _stack.set((*_stack.get(), run))
    try:
        with nullcontext() if pipe._offload is None else pipe._offload.running(pipe._networks), pipe._serving():
            yield run
    finally:
        _stack.reset(token)
        with _lock:
            _active[pipe].remove(run)


def current(pipe: Any) -> RunState | None:
    """Return the innermost run of `pipe` in this thread, or None."""
    return next((run for run in reversed(_stack.get()) if run.call.pipe is pipe), None)


def check_idle(pipe: Any, what: str) -> None:
    """Raise ConfigError while a call of `pipe` is in progress, in whichever thread."""
    if _active.get(pipe):
        raise ConfigError(f"A call of this pipeline is in progress; `{what}` before or after it.")


def is_ours(function: Any) -> bool:
    """Tell whether a function is written in this library."""
    return function.__module__.partition(".")[0] == __name__.partition(".")[0]


def loops_itself(pipe: Any) -> bool:
    """Tell whether the pipeline's `__call__` is written outside this library."""
    return callable(pipe) and not is_ours(type(pipe).__call__)


def call_of(pipe: Any) -> Any:
    """Return the `__call__` of this library that a pipeline has: its class's own, or the one that it wraps."""
    found = (vars(cls)["__call__"] for cls in type(pipe).__mro__ if "__call__" in vars(cls))
    return next(filter(is_ours, found), type(pipe).__call__)


def values_of(pipe: Any) -> dict[str, Any]:
    """Return what a pipeline with a loop of its own has set in this thread."""
    if not hasattr(_own_values, "by_pipe"):
        _own_values.by_pipe = WeakKeyDictionary()
    return _own_values.by_pipe.setdefault(pipe, {})


class RunField:
    """A documented property of a pipeline whose value belongs to the run in progress in the asking thread.

    Outside a run it reads as None, or as what a loop of the pipeline's own has set.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, pipe: Any, owner: type | None = None) -> Any:
        if pipe is None:
            return self
        run = current(pipe)
        return (values_of(pipe) if run is None else run.values).get(self.name)

    def __set__(self, pipe: Any, value: Any) -> None:
        run = current(pipe)
        if run is None and loops_itself(pipe):
            values_of(pipe)[self.name] = value
            return
        if run is None:
            raise ConfigError(
                f"`{self.name}` belongs to a run and no run of this pipeline is in progress in this thread; "
                f"pass it to the call."
            )
        run.values[self.name] = value


class InterruptField:
    """The documented `interrupt` switch.

    Set inside a callback it stops that run; set from another thread it stops every run of the pipeline in progress. A
    loop of the pipeline's own reads what was set last, by whichever thread.
    """

    def __get__(self, pipe: Any, owner: type | None = None) -> Any:
        if pipe is None:
            return self
        run = current(pipe)
        return _own_switches.get(pipe, False) if run is None else run.interrupt

    def __set__(self, pipe: Any, value: bool) -> None:
        run = current(pipe)
        with _lock:
            targets = [run] if run is not None else list(_active.get(pipe, ()))
            if run is None and loops_itself(pipe):
                _own_switches[pipe] = bool(value)
        for target in targets:
            target.interrupt = bool(value)
