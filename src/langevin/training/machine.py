"""The processes that train together, as accelerate tells of them before a run is made."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from ..core.errors import ConfigError
from ..core.imports import require

DIVIDED = {
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "FSDP": "ACCELERATE_USE_FSDP",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
    "a parallelism_config": "ACCELERATE_USE_PARALLELISM_CONFIG",
}
"""What divides weights among processes -> the variable by which accelerate tells the processes that it starts."""


def machine() -> Any:
    """Return accelerate's state of the processes, which a run made later shares.

    Raises:
        ConfigError: when accelerate is configured to divide weights among processes, or takes no note of the others.
        MissingDependencyError: without accelerate.
    """
    accelerate = require("accelerate", why="Training", extra="training")
    for name, flag in DIVIDED.items():
        if accelerate.utils.parse_flag_from_env(flag):
            raise ConfigError(
                f"accelerate is configured for {name}, which divides weights among processes; recipes train, average "
                "and write whole ones. Leave it out (`accelerate config`), or use `accelerate launch --multi_gpu`; "
                "gradient_checkpointing, mixed_precision, a LoRA and optimizer=adafactor save memory."
            )
    state = accelerate.PartialState(cpu=accelerate.utils.parse_flag_from_env("ACCELERATE_USE_CPU"))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and state.num_processes == 1:
        raise ConfigError(
            f"{started} processes were started, but there is no device for each, so that every one of them would train "
            "by itself; with ACCELERATE_USE_CPU=true they train together on processors."
        )
    return state


def give_back() -> None:
    """Hand freed memory back to the system where the C library has a call for it, which else keeps it in pieces."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
