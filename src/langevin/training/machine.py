"""The processes that train together, as accelerate tells of them before a run is made, and what it does for a run."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.imports import require
from .divided import asked, plainly

if TYPE_CHECKING:
    from .trainer import Run

OWN = "langevin"
"""What the state of accelerate is marked with where a run set it up."""
DIVIDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Kinds of processes in accelerate's words that divide weights; a run does so by itself."""


def machine() -> Any:
    """Return accelerate's state of the processes, which a run made later shares.

    Raises:
        ConfigError: when accelerate is configured for what recipes do not do, or takes no note of the other processes.
        MissingDependencyError: without accelerate.
    """
    accelerate = require("accelerate", why="Training", extra="training")
    cpu = accelerate.utils.parse_flag_from_env("ACCELERATE_USE_CPU")
    with plainly(asked()):
        state = accelerate.PartialState(cpu=cpu)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and state.num_processes == 1:
        raise ConfigError(
            f"{started} processes were started, but there is no device for each, so that every one of them would train "
            "by itself; with ACCELERATE_USE_CPU=true they train together on processors."
        )
    return state


def accelerator(run: Run) -> Any:
    """Return accelerate's view of the machine: devices, processes, precision.

    Raises:
        ConfigError, MissingDependencyError: see `machine`.
    """
    machine()
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    own = make_room(run.mixed_precision)
    plugin = GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)
    packages = {"tensorboard": "training", "wandb": None}
    for name in run.trackers:
        require(name, why=f"The tracker {name}", extra=packages.get(name))
    with plainly():
        made = Accelerator(
            mixed_precision=run.mixed_precision,
            gradient_accumulation_plugin=plugin,
            log_with=list(run.trackers) or None,
            project_dir=run.tracker_folder or run.folder / "logs",
        )
    if made.distributed_type in DIVIDING:
        raise ConfigError(
            f"This process has an Accelerator for {made.distributed_type.value}, which divides weights in a way of its "
            "own; train in a process of its own."
        )
    setattr(made.state, OWN, own)
    return made


def make_room(precision: str | None) -> bool:
    """Let a run have its own precision, although accelerate keeps one for the whole process: that of an earlier run.

    Returns whether accelerate is, or will be, set up by runs alone.

    Args:
        precision: that the run asks for; None is what accelerate was configured for.

    Raises:
        ConfigError: when it was not a run that set accelerate up, and for another precision.
    """
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import parse_choice_from_env

    if not is_initialized():
        return True
    state = AcceleratorState()
    own = getattr(state, OWN, False)
    wanted = precision or parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    if state.mixed_precision != wanted and own:
        AcceleratorState._reset_state()
    elif precision not in (None, state.mixed_precision):
        raise ConfigError(
            f"This process has an Accelerator for mixed_precision={state.mixed_precision!r}, and the run asks for "
            f"{precision!r}: pass mixed_precision={state.mixed_precision!r}, or train in a process of its own."
        )
    return own


def give_back() -> None:
    """Hand freed memory back to the system where the C library has a call for it, which else keeps it in pieces."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
