"""Memory of large feature maps used again, in place of asking the system for new at every layer.

The C library of Linux gives a block of more than 32 MB back to the system when it is freed, and every page of the next
one is taken anew, and zeroed, when it is first written. At 512 pixels an autoencoder writes 2 GB of such blocks per
picture. While its encoder or decoder runs, freed blocks are kept and used again; then they go back.

Gain on two cores of an AMD processor with AVX512-BF16 in bfloat16: decoding at 512 pixels takes 3.0 in place of 3.35 s,
0.35 of them to take and give back the memory (`python -m benchmarks --only vae-decode --dtype bfloat16`). Loss: 0.4 to
0.7 GB more there while it runs, since blocks of several sizes leave gaps; and the settings of the C library hold for
all threads meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.autoencoders.vae import Decoder, Encoder
from ..nn.compiled import compiled
from .layers import ORIGINAL, change, restore

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Names of settings in the C library's `mallopt`."""
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
USUAL = {MMAP_MAX: 1 << 16, TRIM_THRESHOLD: 64 << 20}
"""The library's own; the threshold is what it reaches by itself once blocks of 32 MB were freed."""

_lock = threading.Lock()
_inside = 0


@functools.cache
def library() -> Any:
    """Return the C library, or None where it has no such settings."""
    found = ctypes.CDLL(None) if sys.platform == "linux" else None
    return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None


def setting(values: dict[int, int]) -> None:
    """Tell the C library."""
    for name, value in values.items():
        library().mallopt(name, value)


@contextmanager
def kept_heap() -> Iterator[None]:
    """Context in which freed memory stays with the process; the last of several threads gives it back."""
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            setting(KEEP)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                setting(USUAL)
                library().malloc_trim(0)


def reusing(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what a network makes of a feature map, with `kept_heap` on the CPU."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return forward(x)
    with kept_heap():
        return forward(x)


class KeepingEncoder(Encoder):
    """An encoder whose feature maps use memory again."""

    def forward(self, x: Tensor) -> Tensor:
        """As `Encoder`."""
        return reusing(super().forward, x)


class KeepingDecoder(Decoder):
    """A decoder whose feature maps use memory again."""

    def forward(self, z: Tensor) -> Tensor:
        """As `Decoder`."""
        return reusing(super().forward, z)


KEEPING: dict[type[nn.Module], type[nn.Module]] = {Encoder: KeepingEncoder, Decoder: KeepingDecoder}
ORIGINAL |= {ours: original for original, ours in KEEPING.items()}


def keep(network: nn.Module) -> list[nn.Module]:
    """Let the encoder and the decoder of a network use memory again, and return those that were changed."""
    return change([part for part in network.children() if type(part) in KEEPING], KEEPING)


class KeptHeap:
    """Lets encoders and decoders of pictures use memory again: a step of `optimize`, on CPUs under Linux."""

    name = "kept heap"
    gain = "large feature maps use memory again; 0.4 to 0.7 GB more while 512 pixels are decoded"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network is an autoencoder on the CPU, not compiled, and the C library can be told."""
        fits = device.type == "cpu" and library() is not None and not compiled(network)
        return fits and any(isinstance(part, (Encoder, Decoder)) for part in network.children())

    def apply(self, network: nn.Module) -> None:
        """Change encoder and decoder by their classes."""
        keep(network)

    def undo(self, network: nn.Module) -> None:
        """Change them back."""
        restore(network.children(), KEEPING.values())
