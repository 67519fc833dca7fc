"""What a network is told about a batch of pictures, as a family writes it down, and how prompts become that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..core.errors import InputError
from ..prompts import Condition, Encoding

Self = TypeVar("Self", bound="Conditioning")


@dataclass(frozen=True)
class Conditioning:
    """Base of a family's conditioning: every field is a tensor with one row per picture, or None.

    Attributes:
        weight: share of every row in the guidance, (batch,); None is 1.
        pictures: embeddings of picture prompts, (batch, pictures, ...), one tensor per IP-Adapter.
        offered: documented name of a callback's tensor -> field.
    """

    weight: Tensor | None = field(default=None, kw_only=True)
    pictures: tuple[Tensor, ...] = field(default=(), kw_only=True)
    offered: ClassVar[Mapping[str, str]] = {}

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of the network's call."""
        raise NotImplementedError

    def at(self: Self, call: int) -> Self:
        """Return what holds at a network call of a run, counted from 0: always the same."""
        return self

    def map(self: Self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return it with every tensor changed."""
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "pictures"}
        changed = {name: change(value) for name, value in values.items() if value is not None}
        return replace(self, **changed, pictures=tuple(map(change, self.pictures)))

    def added(self, **more: Tensor | None) -> dict[str, Any]:
        """Return the keyword of the network for what stands beside the text: the pictures, and more by name."""
        shown: dict[str, Any] = {**more, **({"image_embeds": list(self.pictures)} if self.pictures else {})}
        return {"added_cond_kwargs": shown} if shown else {}

    def repeat(self: Self, count: int) -> Self:
        """Return every row `count` times in a row."""
        return self.map(lambda rows: rows.repeat_interleave(count, dim=0))

    def rows(self: Self, chosen: slice) -> Self:
        """Return some of the rows."""
        return self.map(lambda rows: rows[chosen])

    def to(self: Self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return it on a device and in a type."""
        return self.map(lambda rows: rows.to(device=device, dtype=dtype))

    @staticmethod
    def cat(parts: Sequence[Self]) -> Self:
        """Return several batches as one."""
        if len(parts) == 1:
            return parts[0]
        names = [column.name for column in fields(parts[0]) if column.name != "pictures"]
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        joined: dict[str, Any] = {
            name: None if any(r is None for r in rows) else torch.cat(rows) for name, rows in columns.items()
        }
        pictures = tuple(torch.cat(rows) for rows in zip(*(part.pictures for part in parts), strict=True))
        return replace(parts[0], **joined, pictures=pictures)


@dataclass(frozen=True)
class Scheduled:
    """A conditioning that changes during a run.

    Attributes:
        states: what holds at one time or another.
        index: the number of the state of every network call; the last one goes on.
    """

    states: tuple[Conditioning, ...]
    index: tuple[int, ...]

    def at(self, call: int) -> Conditioning:
        """Return what holds at a network call of a run, counted from 0."""
        return self.states[self.index[min(call, len(self.index) - 1)]]


Conditions = dict[str, "Conditioning | Scheduled | None"]
"""Name of a branch of guidance -> its conditioning."""


def member(number: int) -> str:
    """Return the name of the branch of a member of AND, counted from 0: "positive", "positive 1", ..."""
    return "positive" if number == 0 else f"positive {number}"


def is_member(name: str) -> bool:
    """Tell whether a branch is that of the prompt, or of a member of it."""
    return name.startswith("positive")


def members(conditions: Conditions) -> list[str]:
    """Return the names of the positive branches."""
    return [name for name in conditions if is_member(name)]


def branches(
    positive: Encoding,
    negative: Encoding | None,
    make: Callable[[Condition], Conditioning],
    *,
    make_negative: Callable[[Condition], Conditioning] | None = None,
    numbers: Sequence[int] = (0,),
    per_prompt: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Conditions:
    """Return the conditioning of every branch of guidance from the encoded prompts.

    Args:
        positive, negative: see `prompts.encode`; None for a run without guidance.
        make, make_negative: the family's conditioning of one condition.
        numbers: the number of the step of every network call, for prompts that change on the way.
        per_prompt: pictures per prompt.
        device, dtype: of the result.

    Raises:
        InputError: when conditions are joined by AND without guidance, or in a negative prompt.
    """
    count = max(len(state) for state in positive.states)
    if count > 1 and negative is None:
        raise InputError("AND needs guidance: set guidance_scale above 1, or write one condition.")
    if negative is not None and any(len(state) > 1 for state in negative.states):
        raise InputError("A negative prompt has one condition; write it without AND.")

    def weighed(state: tuple[Condition, ...], number: int) -> Conditioning:
        condition = state[min(number, len(state) - 1)]
        if count == 1:
            return make(condition)
        shares = condition.weights if number < len(state) else (0.0,) * len(condition.hidden)
        return replace(make(condition), weight=torch.tensor(shares))

    def line(encoding: Encoding, build: Callable[[tuple[Condition, ...]], Conditioning]) -> Conditioning | Scheduled:
        states = tuple(build(state).to(device, dtype).repeat(per_prompt) for state in encoding.states)
        if len(states) == 1:
            return states[0]
        return Scheduled(states, tuple(encoding.index[min(n, len(encoding.index) - 1)] for n in numbers))

    found: Conditions = {member(k): line(positive, partial(weighed, number=k)) for k in range(count)}
    other = make_negative or make
    found["negative"] = None if negative is None else line(negative, lambda state: other(state[0]))
    return found
