"""How long a call takes and how much memory the process took."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def on_gpu() -> bool:
    """Tell whether there is a GPU to measure on."""
    import torch

    return torch.cuda.is_available()


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def clocked(call: Callable[[], Any], repeats: int, *, budget: float = math.inf, least: int = 3) -> float:
    """Return the median time of one call in seconds, after one call that is not counted.

    Args:
        repeats: the most calls that are counted.
        budget: seconds after which no further call begins, once there are `least`.
    """
    call()
    times: list[float] = []
    while len(times) < repeats and (len(times) < least or sum(times) < budget):
        times.append(seconds(call))
    return statistics.median(times)


def peak() -> float:
    """Return the greatest memory so far in GB: of the GPU, or of this process where there is none.

    Of the process, pages of mapped files count too while they are in memory. Linux is asked for what the process had
    since its program began: what `getrusage` says begins with the greatest memory of the process that started it.
    """
    if "torch" in sys.modules and on_gpu():
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
