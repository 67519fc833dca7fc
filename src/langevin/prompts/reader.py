"""One text encoder at work: texts in, hidden states of equal length out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from .data import Blend, Join, Passage, Text
from .tokens import Row, empty_row, frame_of, rows_of
from .weighting import from_empty, lessened, scaled

EncodeIds = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Tower:
    """A text encoder as a family uses it.

    Attributes:
        encode_ids: from ids (rows, length) on the host, and their mask or None, to hidden states (rows, length, width)
            and pooled states (rows, size) or None. What clip_skip means, which layer is taken, where the encoder is and
            whether its output is finite are its affair. A mask that it is given has to be used.
        tokenizer: of that encoder.
        masked: give the mask of the padding with every call. Without it there is a mask only where a weight needs one.
    """

    encode_ids: EncodeIds
    tokenizer: Any
    masked: bool = False


State = tuple[Tensor, Tensor | None]
"""Hidden states (tokens, width) and pooled states (size) of one text."""


class Reader:
    """A tower for one call: lays texts out in rows, encodes them, and keeps what it has read.

    Args:
        length: see `encoding.encode`.
        truncate: keep one row of each chunk.

    Raises:
        InputError: when the length is neither within the tokenizer's limit nor a multiple of it.
    """

    def __init__(self, tower: Tower, length: int | None = None, *, truncate: bool = False) -> None:
        limit = tower.tokenizer.model_max_length
        if length is not None and length > limit and length % limit:
            raise InputError(f"No prompt can have {length} tokens: the encoder takes {limit} or a multiple of that.")
        self.tower = tower
        self.frame = frame_of(tower.tokenizer, None if length is None else min(length, limit))
        self.truncate = truncate
        self._rows: dict[Passage, list[Row]] = {}
        self._read: dict[tuple[Text, ...], tuple[Tensor, Tensor | None]] = {}
        self._empty: Tensor | None = None

    def rows(self, text: Text) -> int:
        """Return how many rows the states of a text span."""
        if isinstance(text, Passage):
            return len(self._layout(text))
        counts = [len(self._layout(part)) for part in text.parts]
        return max(counts) if isinstance(text, Blend) else sum(counts)

    def read(self, texts: Sequence[Text], rows: int) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states (texts, tokens, width) of a batch, filled up to `rows` rows, and the pooled ones."""
        key = tuple(texts)
        if key not in self._read:
            parts = [part for text in texts for part in ((text,) if isinstance(text, Passage) else text.parts)]
            read = iter(self._passages(parts))
            states = [self._state(text, read) for text in texts]
            hidden = torch.stack([self._filled(hidden, rows) for hidden, _ in states])
            pooled = [pooled for _, pooled in states if pooled is not None]
            self._read[key] = hidden, torch.stack(pooled) if pooled else None
        return self._read[key]

    def empty(self) -> Tensor:
        """Return the hidden states (length, width) of one row of the empty prompt."""
        if self._empty is None:
            self._empty = self._encode([empty_row(self.frame)])[0][0]
        return self._empty

    def _layout(self, passage: Passage) -> list[Row]:
        if passage not in self._rows:
            self._rows[passage] = rows_of(passage, self.tower.tokenizer, self.frame, truncate=self.truncate)
        return self._rows[passage]

    def _encode(self, rows: Sequence[Row], hide: Sequence[int] = ()) -> tuple[Tensor, Tensor | None]:
        """Ask the encoder; `hide` names for every row the fragment that attention may not see."""
        ids = torch.tensor([row.ids for row in rows])
        mask = None
        if self.tower.masked or hide:
            ends = [row.used if self.tower.masked else len(row.ids) for row in rows]
            mask = torch.tensor(
                [[int(k < end) for k in range(len(row.ids))] for row, end in zip(rows, ends, strict=True)]
            )
        if hide and mask is not None:
            mask[torch.tensor([row.owners for row in rows]) == torch.tensor(hide)[:, None]] = 0
        return self.tower.encode_ids(ids, mask)

    def _passages(self, passages: Sequence[Passage]) -> list[State]:
        """Encode passages in one call, and weigh those that have weights."""
        layouts = [self._layout(passage) for passage in passages]
        hidden, pooled = self._encode([row for rows in layouts for row in rows])
        states, start = [], 0
        for passage, rows in zip(passages, layouts, strict=True):
            parts = [self._weighed(passage, row, hidden[start + k]) for k, row in enumerate(rows)]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            states.append((whole, None if pooled is None else pooled[start]))
            start += len(rows)
        return states

    def _weighed(self, passage: Passage, row: Row, z: Tensor) -> Tensor:
        """Return the hidden states of a row under its weights; without weights they are untouched."""
        if not row.weighted:
            return z
        precise = torch.promote_types(z.dtype, torch.float32)
        w = torch.tensor(row.weights, dtype=precise, device=z.device)[:, None]
        if passage.syntax == "a1111":
            result = scaled(z.to(precise), w)
        elif passage.syntax == "comfy":
            result = from_empty(z.to(precise), w, self.empty().to(precise))
        else:
            lesser = {owner: v for owner, v in zip(row.owners, row.weights, strict=True) if v < 1.0}
            masked = list(self._encode([row] * len(lesser), list(lesser))[0].to(precise)) if lesser else []
            pairs = list(zip(masked, lesser.values(), strict=True))
            result = lessened(z.to(precise), w, self.empty().to(precise), pairs)
        return result.to(z.dtype)

    def _state(self, text: Text, read: Iterator[State]) -> State:
        """Put the states of a text's passages together."""
        if isinstance(text, Passage):
            return next(read)
        parts = [next(read) for _ in text.parts]
        if isinstance(text, Join):
            return torch.cat([self._pulled(h, w) for (h, _), w in zip(parts, text.weights, strict=True)]), parts[0][1]
        rows = self.rows(text)
        hidden = _sum(text, [self._filled(hidden, rows) for hidden, _ in parts])
        pooled = [pooled for _, pooled in parts if pooled is not None]
        return hidden, _sum(text, pooled) if pooled else None

    def _pulled(self, hidden: Tensor, weight: float) -> Tensor:
        """Return a part of a join, pulled to the empty prompt or away from it."""
        if weight == 1.0:
            return hidden
        empty = self.empty().repeat(len(hidden) // self.frame.length, 1)
        return from_empty(hidden, torch.tensor(weight, dtype=hidden.dtype, device=hidden.device), empty)

    def _filled(self, hidden: Tensor, rows: int) -> Tensor:
        missing = rows - len(hidden) // self.frame.length
        return hidden if missing <= 0 else torch.cat([hidden, self.empty().repeat(missing, 1)])


def _sum(blend: Blend, states: Sequence[Tensor]) -> Tensor:
    """Return the weighted mean of states, or their weighted sum when the blend is not normalised."""
    total = sum(blend.weights) if blend.normalize else 1.0
    mixed = sum(
        weight / total * state.to(torch.promote_types(state.dtype, torch.float32))
        for weight, state in zip(blend.weights, states, strict=True)
    )
    assert isinstance(mixed, Tensor)
    return mixed.to(states[0].dtype)
