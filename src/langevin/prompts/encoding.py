"""From parsed prompts to what a network is conditioned on: any length, any weights, any number of encoders.

A family says how token ids become hidden states (`Tower`); everything else about prompts is here. Rows of a prompt are
encoded one by one and laid side by side, so a prompt of any length fits. Prompts that have to match, positive and
negative ones or members of AND, are filled up with the hidden states of the empty prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.errors import InputError, check_choice
from .data import EMPTY, Prompt, Script, Text
from .reader import Reader, Tower

LONG_PROMPTS = ("chunk", "truncate")


@dataclass(frozen=True, eq=False)
class Condition:
    """What the network is told about a batch.

    Attributes:
        hidden: (batch, tokens, width).
        pooled: (batch, size) of the last tower that has any, or None.
        weights: the share of every row in the guidance; 1 without AND.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Encoding:
    """The conditions of a run.

    Attributes:
        states: different states of the run; each has one condition, or several joined by AND.
        index: the number of the state of every step.
        empty: makes the hidden states (1, length, width) of one row of the empty prompt; None when no encoder is known.
    """

    states: tuple[tuple[Condition, ...], ...]
    index: tuple[int, ...] = (0,)
    empty: Callable[[], Tensor] | None = field(default=None, repr=False)

    def at(self, step: int) -> tuple[Condition, ...]:
        """Return the conditions of a step, counted from 0; the last one named goes on."""
        return self.states[self.index[min(step, len(self.index) - 1)]]

    @property
    def tokens(self) -> int:
        """How many tokens every condition has."""
        return self.states[0][0].hidden.shape[1]

    def only(self, what: str = "prompt") -> Condition:
        """Return the one condition of a run that neither changes nor has members.

        Raises:
            InputError: when there is more than that.
        """
        if len(self.states) > 1:
            raise InputError(
                f"The {what} may not change between steps here; write it without [from:to:when] and [a|b]."
            )
        if len(self.states[0]) > 1:
            raise InputError(f"The {what} may not have several conditions here; write it without AND.")
        return self.states[0][0]


def given(hidden: Tensor, pooled: Tensor | None = None) -> Encoding:
    """Return embeddings that were made elsewhere, hidden states (batch, tokens, width), as an encoding."""
    return Encoding(((Condition(hidden, pooled, (1.0,) * len(hidden)),),))


def encode(
    towers: Sequence[Tower],
    scripts: Sequence[Sequence[Script]],
    *,
    steps: int | None = None,
    long_prompt: str = "chunk",
    length: int | None = None,
) -> Encoding:
    """Encode a batch of prompts.

    Args:
        towers: one per text encoder; hidden states are joined along the width, in this order.
        scripts: for every tower the prompts of the batch, see `syntax.parse_all`.
        steps: how many steps the run has; needed when a prompt changes between steps.
        long_prompt: "chunk" encodes all of a long prompt, "truncate" what fits, with a warning that names the rest.
        length: tokens of embeddings that these have to go with. Up to the tokenizer's limit it is the length of a row,
            and beyond it has to be a multiple of that limit. The result may be longer; see `aligned`.

    Raises:
        InputError: for batches of different sizes, and for members of AND that do not match between towers.
    """
    check_choice("`long_prompt`", long_prompt, LONG_PROMPTS)
    if len(towers) != len(scripts) or len({len(batch) for batch in scripts}) != 1 or not scripts[0]:
        sizes = [len(batch) for batch in scripts]
        raise InputError(f"{len(towers)} text encoders need as many lists of equally many prompts; got {sizes}.")
    readers = [Reader(tower, length, truncate=long_prompt == "truncate") for tower in towers]
    if len({reader.frame.length for reader in readers}) != 1:
        limits = [reader.frame.length for reader in readers]
        raise InputError(f"The tokenizers take texts of different lengths, {limits}; their states cannot be joined.")
    scenes, index = _scenes(scripts, steps)
    members = [_members(scene) for scene in scenes]
    every = [share for scene in members for column in scene for share in column]
    rows = max(reader.rows(share.texts[k]) for share in every for k, reader in enumerate(readers))
    rows = max(rows, (length or 0) // readers[0].frame.length)
    states = tuple(tuple(_condition(readers, column, rows) for column in scene) for scene in members)
    return Encoding(states, index, lambda: torch.cat([reader.empty()[None] for reader in readers], dim=-1))


def aligned(*encodings: Encoding) -> list[Encoding]:
    """Fill encodings up with the empty prompt until all have as many tokens as the longest.

    Raises:
        InputError: when one has to be filled up and no encoder is known, or the difference is no whole number of rows.
    """
    tokens = max(encoding.tokens for encoding in encodings)
    spare = next((encoding.empty for encoding in encodings if encoding.empty is not None), None)
    return [_filled(encoding, tokens, encoding.empty or spare) for encoding in encodings]


def _filled(encoding: Encoding, tokens: int, make: Callable[[], Tensor] | None) -> Encoding:
    missing = tokens - encoding.tokens
    if not missing:
        return encoding
    empty = None if make is None else make()
    if empty is None or missing % empty.shape[1]:
        raise InputError(
            f"Embeddings of {encoding.tokens} and of {tokens} tokens have to go together and cannot be filled up; "
            "encode both prompts in the same way, or pass embeddings of one length."
        )

    def fill(condition: Condition) -> Condition:
        rest = empty.to(condition.hidden).repeat(len(condition.hidden), missing // empty.shape[1], 1)
        return replace(condition, hidden=torch.cat([condition.hidden, rest], dim=1))

    return replace(encoding, states=tuple(tuple(map(fill, state)) for state in encoding.states))


# Steps and members ---------------------------------------------------------------------------------------------------

_Scene = tuple[tuple[Prompt, ...], ...]
"""For every tower the prompts of the batch at one step."""


def _scenes(scripts: Sequence[Sequence[Script]], steps: int | None) -> tuple[list[_Scene], tuple[int, ...]]:
    """Return the different scenes of a run, and which one every step shows."""
    lines = [[script.timeline(steps) for script in batch] for batch in scripts]
    found: dict[tuple, int] = {}
    scenes: list[_Scene] = []
    index = []
    for step in range(steps or 1):
        numbers = tuple(tuple(line.index[step] for line in batch) for batch in lines)
        if numbers not in found:
            found[numbers] = len(scenes)
            scenes.append(tuple(tuple(line.prompts[line.index[step]] for line in batch) for batch in lines))
        index.append(found[numbers])
    return scenes, tuple(index)


@dataclass(frozen=True)
class _Share:
    """A member of one prompt: its text for every tower, and its weight."""

    texts: tuple[Text, ...]
    weight: float


def _members(scene: _Scene) -> list[list[_Share]]:
    """Return for every member its shares over the batch; a prompt with fewer members has empty ones of weight 0."""
    prompts = [_shares(of_towers) for of_towers in zip(*scene, strict=True)]
    absent = _Share((EMPTY,) * len(scene), 0.0)
    count = max(len(shares) for shares in prompts)
    return [[shares[k] if k < len(shares) else absent for shares in prompts] for k in range(count)]


def _shares(of_towers: tuple[Prompt, ...]) -> list[_Share]:
    """Return the members of one prompt; a tower with one text uses it for all of them.

    Raises:
        InputError: when two towers have several members, and not equally many.
    """
    counts = {len(prompt) for prompt in of_towers} - {1}
    if len(counts) > 1:
        raise InputError(
            f"AND joins {' and '.join(map(str, sorted(counts)))} conditions in the prompts of the text encoders; "
            "give equally many, or one."
        )
    leading = max(of_towers, key=len)
    full = [prompt if len(prompt) == len(leading) else prompt * len(leading) for prompt in of_towers]
    return [_Share(tuple(prompt[k].text for prompt in full), leading[k].weight) for k in range(len(leading))]


def _condition(readers: Sequence[Reader], column: Sequence[_Share], rows: int) -> Condition:
    parts = [reader.read([share.texts[k] for share in column], rows) for k, reader in enumerate(readers)]
    pooled = [pooled for _, pooled in parts if pooled is not None]
    hidden = parts[0][0] if len(parts) == 1 else torch.cat([hidden for hidden, _ in parts], dim=-1)
    return Condition(hidden, pooled[-1] if pooled else None, tuple(share.weight for share in column))
