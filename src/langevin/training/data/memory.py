"""What was computed for rows of batches, kept in memory for the next time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


class Memory:
    """What was computed for rows, up to a number of bytes; the rows that were not asked for longest go first.

    A row is known by its key and the number of rows that it was computed with, on which its last bits may depend.

    Args:
        limit: bytes of the tensors.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.rows: OrderedDict[tuple[int, bytes], dict[str, Tensor]] = OrderedDict()

    def __call__(self, names: Sequence[bytes], compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors of rows by name: as they were computed before, or all of them anew if one is not known."""
        keys = [(len(names), name) for name in names]
        if all(key in self.rows for key in keys):
            rows = [self.rows[key] for key in keys]
            self._use(keys)
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        found = dict(compute())
        for k, key in enumerate(keys):
            if key not in self.rows:
                self.rows[key] = {name: tensor[k].clone() for name, tensor in found.items()}
                self.size += weight(self.rows[key])
        self._use(keys)
        while self.size > self.limit:
            self.size -= weight(self.rows.popitem(last=False)[1])
        return found

    def _use(self, keys: Sequence[tuple[int, bytes]]) -> None:
        for key in keys:
            self.rows.move_to_end(key)


def weight(row: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in row.values())
