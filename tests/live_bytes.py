"""A dispatch mode that counts the memory of the tensors that exist at a time."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts what is made under it; `peak` is the most bytes that were alive at once, on `device` where that is named.

    What a kernel allocates for itself is not seen.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device, self.now, self.peak = device, 0, 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and self.device in (None, x.device.type):
                storage = x.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.sizes:
                    self.count(storage)
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        """Count `storage` until it is freed."""
        self.sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        """Take a freed storage out of the count."""
        self.now -= self.sizes.pop(key)
