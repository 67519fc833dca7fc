"""From weighted text to rows of token ids that an encoder can read."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from ..core.logging import get_logger
from .data import Chunk, Passage, short

logger = get_logger(__name__)
tokenizing = threading.Lock()
"""Tokenizers keep padding and truncation as state between a call and its work, so threads take turns."""

BACKTRACK = 20
"""How many of a row's last tokens are searched for a comma to end the row after."""

UNBOUNDED = 100_000
"""A tokenizer without a limit of its own names an astronomic number."""


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around the tokens of a row.

    Attributes:
        before, after: the ids that begin and end a text.
        pad: the id that fills a row up.
        length: ids of a row, all included.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    length: int

    @property
    def room(self) -> int:
        """How many ids of the text itself fit into a row."""
        return self.length - len(self.before) - len(self.after)


@dataclass(frozen=True)
class Row:
    """One input of the encoder.

    Attributes:
        ids: as many as the frame's length.
        weights: the weight of every id; those of the frame have 1.
        owners: the number of the fragment that an id belongs to, -1 for those of the frame.
        used: how many ids there are before the padding.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    owners: tuple[int, ...]
    used: int

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(weight != 1.0 for weight in self.weights)


@dataclass(frozen=True)
class _Token:
    id: int
    weight: float
    owner: int


def frame_of(tokenizer: Any, length: int | None = None) -> Frame:
    """Return what a tokenizer does to an empty text padded to `length` ids, its own limit when None.

    Raises:
        InputError: when the length leaves no room for text, or the tokenizer has no limit and none is given.
    """
    length = tokenizer.model_max_length if length is None else length
    if length > UNBOUNDED:
        raise InputError("The tokenizer names no `model_max_length`; set it to the number of tokens the encoder takes.")
    with tokenizing:
        bare = tokenizer("", padding=False, truncation=False).input_ids
        full = tokenizer("", padding="max_length", max_length=length, truncation=True).input_ids
    start = 1 if bare and bare[0] == tokenizer.bos_token_id else 0
    frame = Frame(tuple(bare[:start]), tuple(bare[start:]), full[-1], length)
    if frame.room < 1:
        raise InputError(f"A text of {length} tokens has no room for words; the tokenizer adds {len(bare)} of its own.")
    return frame


def expand_words(text: str, tokenizer: Any) -> str:
    """Write out learned words that span several tokens: `<cat>` becomes `<cat> <cat>_1 <cat>_2` (Gal et al. 2022).

    A tokenizer holds such a word as the added tokens `word`, `word_1`, `word_2`, ...; one that is written out already
    stays as it is.
    """
    added = getattr(tokenizer, "added_tokens_encoder", None) or {}
    words = sorted((word for word in added if f"{word}_1" in added), key=len, reverse=True)
    if not any(word in text for word in words):
        return text

    def written_out(match: re.Match[str]) -> str:
        word, count = match.group(1), 1
        while f"{word}_{count}" in added:
            count += 1
        return " ".join([word, *(f"{word}_{k}" for k in range(1, count))])

    return re.sub(rf"({'|'.join(map(re.escape, words))})(?!_\d)(?! \1_1)", written_out, text)


def rows_of(passage: Passage, tokenizer: Any, frame: Frame, *, truncate: bool = False) -> list[Row]:
    """Return the rows of a passage, at least one.

    A chunk that does not fit goes on in the next row: after the last comma if there is one near the end of the row,
    else after the last whole word, else in the middle of a word that is longer than a row.

    Args:
        truncate: one row for each chunk; the words that it drops are named in a warning.
    """
    rows = []
    for chunk in passage.chunks:
        tokens = _tokens(chunk, tokenizer)
        if truncate:
            _report(tokens[frame.room :], passage, tokenizer, frame)
            rows.append(_row(tokens[: frame.room], frame))
        else:
            rows += [_row(part, frame) for part in _parts(tokens, tokenizer, frame.room)]
    return rows


def empty_row(frame: Frame) -> Row:
    """Return the row of an empty text."""
    return _row([], frame)


def _tokens(chunk: Chunk, tokenizer: Any) -> list[_Token]:
    texts = [expand_words(fragment.text, tokenizer) for fragment in chunk]
    if not texts:
        return []
    with tokenizing:
        ids = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False, verbose=False).input_ids
    return [
        _Token(number, fragment.weight, owner)
        for owner, (fragment, numbers) in enumerate(zip(chunk, ids, strict=True))
        for number in numbers
    ]


def _row(tokens: Sequence[_Token], frame: Frame) -> Row:
    used = len(frame.before) + len(tokens) + len(frame.after)
    fill = frame.length - used
    ids = (*frame.before, *(token.id for token in tokens), *frame.after, *(frame.pad,) * fill)
    start, end = len(frame.before), len(frame.after) + fill
    weights = (*(1.0,) * start, *(token.weight for token in tokens), *(1.0,) * end)
    owners = (*(-1,) * start, *(token.owner for token in tokens), *(-1,) * end)
    return Row(ids, weights, owners, used)


def _parts(tokens: list[_Token], tokenizer: Any, room: int) -> list[list[_Token]]:
    """Divide tokens into parts of at most `room`."""
    if len(tokens) <= room:
        return [tokens]
    commas, ends = _marks(tokens, tokenizer)
    parts, start = [], 0
    while len(tokens) - start > room:
        stop = start + room
        near = range(stop - 1, max(stop - 1 - BACKTRACK, start), -1)
        cut = next((k for k in near if commas[k]), None)
        if cut is None:
            cut = next((k for k in range(stop - 1, start - 1, -1) if ends[k]), stop - 1)
        parts.append(tokens[start : cut + 1])
        start = cut + 1
    return [*parts, tokens[start:]]


def _marks(tokens: list[_Token], tokenizer: Any) -> tuple[list[bool], list[bool]]:
    """Return for every token whether it is a comma, and whether a word ends with it.

    In CLIP's vocabulary `</w>` marks an end; elsewhere a mark of a blank begins the next word. A learned word of
    several tokens ends with its last one.
    """
    added = getattr(tokenizer, "added_tokens_encoder", None) or {}
    names = tokenizer.convert_ids_to_tokens([token.id for token in tokens])
    learned = [_continues(name, added) for name in names]
    commas, ends = [], []
    for name, after, goes_on in zip(names, [*names[1:], ""], [*learned[1:], False], strict=True):
        commas.append(name.replace("</w>", "").strip("▁Ġ") == ",")
        ends.append(not goes_on and (name.endswith("</w>") or name in added or after.startswith(("▁", "Ġ"))))
    return commas, ends


def _continues(name: str, added: Any) -> bool:
    """Tell whether a token is a later part of a learned word."""
    match = re.fullmatch(r"(.+)_\d+", name)
    return match is not None and name in added and match.group(1) in added


def _report(dropped: Sequence[_Token], passage: Passage, tokenizer: Any, frame: Frame) -> None:
    if dropped:
        with tokenizing:
            words = tokenizer.decode([token.id for token in dropped]).strip()
        logger.warning(
            "The prompt %s has %d tokens too many, the encoder takes %d; dropped: %r",
            short(passage.text),
            len(dropped),
            frame.length,
            words,
        )
