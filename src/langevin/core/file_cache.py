"""Parts of a file where the system keeps them, so that they need not be copied before they are cast.

A mapped page has a cost of its own, and a program that looks at a mapped part which another program has cut off is
ended by the system. Linux (5.14) can be asked to have all pages of a part at once, which takes a fraction of the
time and fails where the file has none.
"""

from __future__ import annotations

import mmap
import os
import sys

import torch
from torch import Tensor

POPULATE = 22
"""MADV_POPULATE_READ, which Python has no name for."""


class CachedFile:
    """A file whose parts are looked at in the system's cache."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        # Private memory, which torch can take without a warning; nobody writes to it.
        self.memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        self.flat = torch.frombuffer(self.memory, dtype=torch.uint8)

    @classmethod
    def of(cls, descriptor: int) -> CachedFile | None:
        """Return the cache of an open file, or None where the system cannot show it."""
        if sys.platform != "linux" or not hasattr(mmap, "MADV_DONTNEED"):
            return None
        try:
            found = cls(descriptor)
            found.memory.madvise(POPULATE, 0, mmap.PAGESIZE)
        except (OSError, ValueError):
            return None
        return found

    def part(self, start: int, size: int) -> Tensor | None:
        """Return bytes of the file as a flat tensor, or None where it does not have them all."""
        if start + size > len(self.flat):
            return None
        try:
            self.memory.madvise(POPULATE, *self._pages(start, size))
        except (OSError, ValueError):
            return None
        return self.flat[start : start + size]

    def forget(self, start: int, size: int) -> None:
        """Take a part out of this process's memory; the system keeps it as long as it likes."""
        self.memory.madvise(mmap.MADV_DONTNEED, *self._pages(start, size))

    def whole(self) -> bool:
        """Return whether the file is still as long as it was: what is missing of its last page reads as zeros."""
        return os.fstat(self.descriptor).st_size >= len(self.flat)

    @staticmethod
    def _pages(start: int, size: int) -> tuple[int, int]:
        """Return where the pages of a part begin, and how many bytes it has from there."""
        before = start % mmap.PAGESIZE
        return start - before, size + before
