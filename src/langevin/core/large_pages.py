"""Memory for many tensors that are about to be filled, in large pages where the system gives them when asked.

Memory from the system comes empty, and each page is made when it is first written to. In pages of 4 KiB that takes
longer than casting the weights that are written there; large pages (Linux: transparent huge pages) take a tenth. On
a virtual machine they may be memory that its host has yet to give, which takes longer than all else; so they are made
here, one by one, and when a region takes as long as small pages would the rest is left to those.
"""

from __future__ import annotations

import math
import mmap
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import threads

PAGE = 1 << 21
"""Bytes of a large page."""
REGION = 32 * PAGE
"""Bytes that are taken from the system at a time. A region is given back when no tensor in it is left, so regions are
few enough to be fast and so small that a network which is moved or cast later frees its old weights as it goes."""
SLOW = 1.5e-3
"""Seconds of the processor in which small pages of the same size are had; a large one takes 0.1 to 0.3 ms, or 5 ms
where the host has to give it."""
ALIGNED = 64
"""Every tensor begins at a multiple of so many bytes, as those that torch allocates."""


class Wanted(NamedTuple):
    """What a tensor is to be."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes, and what is left free behind them so that the next tensor is aligned."""
        return -(-self.numel * self.dtype.itemsize // ALIGNED) * ALIGNED


def empty(wanted: Sequence[Wanted]) -> list[Tensor]:
    """Return contiguous tensors on the CPU with any values, neighbours in neighbouring memory.

    Each has a storage of its own. Tensors that are replaced in this order free memory on the way. Where there are no
    large pages, where they are slow, or where too little is wanted for one, it is `torch.empty`.
    """
    found: list[Tensor] = []
    groups = list(_groups(wanted))
    for group, region in zip(groups, _regions([sum(each.size for each in group) for group in groups]), strict=True):
        if region is None:
            found += [torch.empty(each.shape, dtype=each.dtype) for each in group]
            continue
        memory, position = region
        for each in group:
            if each.numel:
                flat = torch.frombuffer(memory, dtype=each.dtype, count=each.numel, offset=position)
                found.append(flat.view(each.shape))
            else:
                found.append(torch.empty(each.shape, dtype=each.dtype))
            position += each.size
    return found


def _groups(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Yield neighbours that share a region; a tensor larger than a region stands alone."""
    group: list[Wanted] = []
    used = 0
    for each in wanted:
        if group and used + each.size > REGION:
            yield group
            group, used = [], 0
        group.append(each)
        used += each.size
    if group:
        yield group


Region = tuple[mmap.mmap, int]
"""Fresh memory, and the position in it where large pages begin."""


def _regions(sizes: Sequence[int]) -> list[Region | None]:
    """Return a region of each size; None for what is too small for one, and for what is left when one was slow."""
    slow = threading.Event()
    return threads.each(lambda size: _region(size, slow) if size >= PAGE else None, sizes)


def _region(size: int, slow: threading.Event) -> Region | None:
    """Return a region whose pages are made, or None where large pages are missing or were found to be slow."""
    if slow.is_set() or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    # What lies before the first large page and after the last one is never touched, and takes no memory.
    memory = mmap.mmap(-1, -(-size // PAGE) * PAGE + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        slow.set()
        return None
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    position = -flat.data_ptr() % PAGE
    begun, pages = time.thread_time(), range(position, position + size, PAGE)
    for page in pages:
        flat[page].zero_()  # and not memory[page] = 0, during which no other thread would run
        if slow.is_set() or time.thread_time() - begun > SLOW * len(pages):
            slow.set()
            return None
    return memory, position
