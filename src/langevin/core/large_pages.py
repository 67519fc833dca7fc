"""Memory for many tensors that are about to be filled, in large pages where the system gives them when asked.

Memory from the system comes empty, and each page is made when it is first written to. In pages of 4 KiB that takes
longer than casting the weights that are written there; large pages (Linux: transparent huge pages) take a tenth.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PAGE = 1 << 21
"""Bytes of a large page."""
REGION = 32 * PAGE
"""Bytes that are taken from the system at a time. A region is given back when no tensor in it is left, so regions are
few enough to be fast and so small that a network which is moved or cast later frees its old weights as it goes."""
ALIGNED = 64
"""Every tensor begins at a multiple of so many bytes, as those that torch allocates."""


class Wanted(NamedTuple):
    """What a tensor is to be."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes, and what is left free behind them so that the next tensor is aligned."""
        return -(-self.count * self.dtype.itemsize // ALIGNED) * ALIGNED


def empty(wanted: Sequence[Wanted]) -> list[Tensor]:
    """Return contiguous tensors on the CPU with any values, neighbours in neighbouring memory.

    Each has a storage of its own. Tensors that are replaced in this order free memory on the way. Where there are no
    large pages, or too little is wanted for one, it is `torch.empty`.
    """
    found: list[Tensor] = []
    for group in _groups(wanted):
        size = sum(each.size for each in group)
        region = _region(size) if size >= PAGE else None
        if region is None:
            found += [torch.empty(each.shape, dtype=each.dtype) for each in group]
            continue
        memory, position = region
        for each in group:
            if each.count:
                flat = torch.frombuffer(memory, dtype=each.dtype, count=each.count, offset=position)
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


def _region(size: int) -> tuple[mmap.mmap, int] | None:
    """Return fresh memory and the position in it where large pages begin, or None where the system has none."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    # What lies before the first large page and after the last one is never touched, and takes no memory.
    memory = mmap.mmap(-1, -(-size // PAGE) * PAGE + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return None
    return memory, -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % PAGE
