"""Attention by the kernel that was the fastest for its shapes where they first occurred.

Which of torch's kernels is the fastest depends on the device and the shapes, and torch chooses by a fixed order. Here
every kernel that computes the same is timed once per device, type and shapes, in the calls of the first step.

Gain: up to the distance between kernels; where none is faster by `MARGIN`, torch's choice stays. Loss: the first step
takes several times as long, and since times vary, so may the choice, and with it the rounding of a result.
`python -m benchmarks.attention` prints the times of all kernels for the shapes of published networks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from ..core.errors import LangevinError
from ..core.logging import get_logger
from . import backends
from .compiled import looked_through

logger = get_logger(__name__)

PLAIN = "sdpa"
"""What the others are held against."""
CANDIDATES: dict[str, tuple[str, ...]] = {"cpu": ("tiled", "amx"), "cuda": ("cudnn", "flash", "efficient")}
"""Type of device -> backends that may be faster there."""
RUNS = 3
"""Timed calls of each, of which the shortest counts; one before them is not timed."""
MARGIN = 0.95
"""The part of torch's time that another kernel may take to be chosen."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Distance from torch's result up to which a kernel counts as computing the same; 2e-2 in half precision."""

_fastest: dict[Hashable, str] = {}
_alone = threading.Lock()


def measured(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Like `backends.sdpa`, by the kernel that was the fastest for such tensors.

    Under gradients, and where a compiler, an exporter or a recorder of graphs looks on, it is torch's.
    """
    return backends.BACKENDS[_choice(q, k, v, mask, scale)](q, k, v, mask, scale)


def _choice(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> str:
    if looked_through():
        return PLAIN
    given = (q, k, v) if mask is None else (q, k, v, mask)
    if q.device.type not in CANDIDATES or (torch.is_grad_enabled() and any(x.requires_grad for x in given)):
        return PLAIN
    key = (q.device, q.dtype, *((x.shape, x.stride()) for x in given))
    if key not in _fastest:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return PLAIN
        with _alone:
            if key not in _fastest:
                _fastest[key] = _found(q, k, v, mask, scale)
    return _fastest[key]


def _found(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> str:
    """Return the name of the fastest backend that computes the same as torch."""
    taken = times((PLAIN, *CANDIDATES[q.device.type]), q, k, v, mask, scale)
    best = min(taken, key=lambda name: taken[name])
    best = best if taken[best] < MARGIN * taken[PLAIN] else PLAIN
    told = ", ".join(f"{name} {1e3 * one:.3g} ms" for name, one in taken.items())
    logger.info("Attention of %s over %d keys: %s; %s computes it.", tuple(q.shape), k.shape[2], told, best)
    return best


def times(
    names: Iterable[str], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> dict[str, float]:
    """Return the seconds that backends take, without those that cannot be had or compute something else than torch."""
    wanted, taken = backends.BACKENDS[PLAIN](q, k, v, mask, scale).float(), {}
    near = TOLERANCE.get(q.dtype, 2e-2)
    for name in names:
        try:
            found = backends.BACKENDS[backends.resolve_backend(name)](q, k, v, mask, scale).float()
        except (LangevinError, RuntimeError) as error:
            logger.debug("Attention by %r cannot be had for %s: %s", name, tuple(q.shape), error)
            continue
        if torch.allclose(found, wanted, atol=near, rtol=near):
            taken[name] = seconds(name, q, k, v, mask, scale)
        else:
            logger.warning("Attention by %r computes something else than torch for %s; left out.", name, tuple(q.shape))
    return taken


def seconds(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> float:
    """Return the shortest time of a call of a backend, which has been called before."""
    kernel, taken = backends.BACKENDS[name], []
    for _ in range(RUNS):
        _wait(q.device)
        begun = time.perf_counter()
        kernel(q, k, v, mask, scale)
        _wait(q.device)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget() -> None:
    """Measure anew."""
    _fastest.clear()
