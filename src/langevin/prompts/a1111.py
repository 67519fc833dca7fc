r"""The syntax of AUTOMATIC1111's web interface.

`(word)` multiplies the weight by 1.1, `[word]` divides it by 1.1, `(word:1.3)` multiplies it by 1.3; brackets nest.
`[from:to:when]` writes `from` in the first steps and `to` after them (`[to:when]` adds, `[from::when]` removes);
`when` is a whole number of steps, or with a decimal point a share of them. `[a|b]` takes turns, step by step.
BREAK starts a new chunk. `a AND b:0.5` are two conditions, the second with half the share.
A backslash makes text of `( ) [ ] : |` and of itself.

As documented there, a bracket that is not closed reaches to the end, and a closing one that closes nothing is text.
Brackets that cross, and AND inside brackets, have no meaning and are errors.

A prompt is read once into a tree; `_write` then says what the tree is at one step. Neither recurses, so depth is free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .data import Member, Passage, Prompt, Script
from .writing import Writer, explicit_weight, fault

NAME = "a1111"
EMPHASIS = 1.1

_TOKENS = re.compile(r"\\[\\()\[\]:|]|[()\[\]:|]|\bAND\b|\bBREAK\b")
_CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True)
class _Piece:
    """Text, or one of the marks `:` `|` AND BREAK, at a position of the source."""

    text: str
    at: int
    mark: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class _Emphasis:
    items: Sequence[_Item]
    factor: float


@dataclass(frozen=True, eq=False, repr=False)
class _Switch:
    """`before` in the steps before `when`, then `after`; a float is a share of the steps."""

    before: Sequence[_Item]
    after: Sequence[_Item]
    when: int | float

    def now(self, step: int, steps: int) -> Sequence[_Item]:
        first = int(self.when * steps + 1e-9) if isinstance(self.when, float) else self.when
        return self.before if step < first else self.after


@dataclass(frozen=True, eq=False, repr=False)
class _Turns:
    options: Sequence[Sequence[_Item]]

    def now(self, step: int, steps: int) -> Sequence[_Item]:
        return self.options[step % len(self.options)]


_Item = _Piece | _Emphasis | _Switch | _Turns


@dataclass
class _Open:
    """A bracket that is not closed yet, and what is in it so far; the whole prompt is one too."""

    bracket: str
    at: int
    items: list[_Item] = field(default_factory=list)


def parse(source: str) -> Script:
    """Read a prompt.

    Raises:
        InputError: for crossing brackets, AND inside brackets, and numbers that mean nothing; names the position.
    """
    members, changes = _read(source)

    def resolve(step: int, steps: int) -> Prompt:
        written = [(_write(source, items, step, steps), weight) for items, weight in members]
        return tuple(Member(Passage(chunks, NAME), weight) for chunks, weight in written)

    resolve(0, 1)  # weights out of bounds are found now, not in the middle of a run
    return Script(source, resolve, changes)


def _read(source: str) -> tuple[list[tuple[Sequence[_Item], float]], bool]:
    """Return the members with their weights, and whether anything in them depends on the step."""
    stack = [_Open("", 0)]
    members: list[list[_Item]] = []
    waiting = {"(": 0, "[": 0}
    changes = False
    for token in _pieces(source):
        here = stack[-1]
        if not token.mark or token.text in (":", "|", "BREAK"):
            here.items.append(token)
        elif token.text == "AND":
            if here.bracket:
                cure = f"close {here.bracket!r} before it, or write `and`"
                raise fault(source, token.at, "AND stands inside brackets", cure)
            members.append(here.items)
            stack = [_Open("", token.at)]
        elif token.text in waiting:
            stack.append(_Open(token.text, token.at))
            waiting[token.text] += 1
        elif not waiting[_CLOSES[token.text]]:
            here.items.append(_Piece(token.text, token.at))
        elif here.bracket != _CLOSES[token.text]:
            cure = f"close the {here.bracket!r} of character {here.at + 1} first, or put a backslash before it"
            raise fault(source, token.at, f"{token.text!r} crosses another bracket", cure)
        else:
            stack.pop()
            waiting[here.bracket] -= 1
            is_round = here.bracket == "("
            group = _Emphasis(*_weighed(source, here.items, EMPHASIS)) if is_round else _square(source, here)
            changes = changes or not isinstance(group, _Emphasis)
            stack[-1].items.append(group)
    while len(stack) > 1:
        unclosed = stack.pop()
        factor = EMPHASIS if unclosed.bracket == "(" else 1 / EMPHASIS
        stack[-1].items.append(_Emphasis(unclosed.items, factor))
    members.append(stack[0].items)
    return [_weighed(source, items, 1.0) if len(members) > 1 else (items, 1.0) for items in members], changes


def _pieces(source: str) -> Iterator[_Piece]:
    """Yield texts, brackets and marks; an escaped character is text."""
    start = 0
    for match in _TOKENS.finditer(source):
        if match.start() > start:
            yield _Piece(source[start : match.start()], start)
        token = match.group()
        escaped = token.startswith("\\")
        yield _Piece(token[1:] if escaped else token, match.start(), mark=not escaped)
        start = match.end()
    if start < len(source):
        yield _Piece(source[start:], start)


def _is(item: _Item, mark: str) -> bool:
    return isinstance(item, _Piece) and item.mark and item.text == mark


def _tail(source: str, items: list[_Item]) -> float | None:
    """Return the number after the last colon, when the items end so."""
    if len(items) < 2 or not _is(items[-2], ":") or not isinstance(items[-1], _Piece):
        return None
    return explicit_weight(source, items[-1].at, items[-1].text)


def _weighed(source: str, items: list[_Item], usual: float) -> tuple[Sequence[_Item], float]:
    """Return items without the number at their end, and that number, or the usual weight where there is none."""
    weight = _tail(source, items)
    return (items, usual) if weight is None else (items[:-2], weight)


def _square(source: str, group: _Open) -> _Item:
    """Tell what a pair of square brackets is: turns, a switch, or less emphasis."""
    if any(_is(item, "|") for item in group.items):
        if _tail(source, group.items) is not None:
            cure = "put the number into round brackets of its own, as in [a|(b:1.2)]"
            raise fault(source, group.at, "[...|...] takes no number", cure)
        return _Turns(_split(group.items, "|"))
    value = _tail(source, group.items)
    if value is None:
        return _Emphasis(group.items, 1 / EMPHASIS)
    *texts, when = _split(group.items, ":")
    if len(texts) > 2:
        raise fault(source, group.at, "[from:to:when] has one part too many", r"write \: for a colon in the text")
    before, after = texts if len(texts) == 2 else ([], texts[0])
    return _Switch(before, after, _when(source, when[0], value))


def _when(source: str, piece: _Item, value: float) -> int | float:
    """Return a step number as int, or a share of the steps as float."""
    assert isinstance(piece, _Piece)
    share = "." in piece.text
    if value < 0 or (share and value > 1):
        cure = "write a share of the steps from 0.0 to 1.0, or a whole number of steps; a weight is (word:1.3)"
        raise fault(source, piece.at, f"[...:when] is {piece.text.strip()}", cure)
    return value if share else int(value)


def _split(items: list[_Item], mark: str) -> list[list[_Item]]:
    parts: list[list[_Item]] = [[]]
    for item in items:
        if _is(item, mark):
            parts.append([])
        else:
            parts[-1].append(item)
    return parts


def _write(source: str, items: Sequence[_Item], step: int, steps: int) -> tuple:
    """Return the chunks that a tree stands for at one step."""
    writer = Writer(source)
    work: list[tuple[Iterator[_Item], float]] = [(iter(items), 1.0)]
    while work:
        rest, weight = work[-1]
        item = next(rest, None)
        if item is None:
            work.pop()
        elif isinstance(item, _Emphasis):
            work.append((iter(item.items), weight * item.factor))
        elif not isinstance(item, _Piece):
            work.append((iter(item.now(step, steps)), weight))
        elif _is(item, "BREAK"):
            writer.cut()
        else:
            writer.add(item.text, weight, at=item.at)
    return writer.finish()
