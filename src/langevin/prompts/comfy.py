r"""ComfyUI's syntax: `(word:1.2)`, `(word)` for 1.1, and `\(` `\)` for the characters themselves.

A bracket without a number multiplies the weight around it by 1.1. A number stands for itself, whatever is around it:
in `((a:1.2) b:1.5)` the weights are 1.2 and 1.5. Brackets that do not match are an error, since ComfyUI documents no
reading of them. All other characters, `[` and `AND` among them, are text.
"""

from __future__ import annotations

import re

from .data import Member, Passage, Script
from .writing import Writer, explicit_weight, fault

NAME = "comfy"
EMPHASIS = 1.1

_TOKENS = re.compile(r"\\[()]|[()]")
_NUMBERED = re.compile(r"(.*):([^:]*)", re.DOTALL)


def parse(source: str) -> Script:
    """Read a prompt.

    Raises:
        InputError: for brackets that do not match, and for weights that are no finite number.
    """
    passage = Passage(_chunks(source), NAME)
    return Script(source, lambda step, steps: (Member(passage),))


def _chunks(source: str) -> tuple:
    marks = [(match.start(), match.group()) for match in _TOKENS.finditer(source)]
    factors = _numbers(source, marks)
    writer, weights, start = Writer(source), [1.0], 0
    for position, mark in [*marks, (len(source), "")]:
        end = factors[position][1] if mark == ")" else position
        writer.add(source[start:end], weights[-1], at=start)
        start = position + len(mark)
        if mark == "(":
            value = factors[position][0]
            weights.append(weights[-1] * EMPHASIS if value is None else value)
        elif mark == ")":
            weights.pop()
        else:
            writer.add(mark[1:], weights[-1], at=position)
    return writer.finish()


def _numbers(source: str, marks: list[tuple[int, str]]) -> dict[int, tuple[float | None, int]]:
    """Return for every bracket the weight written in it or None, and where the text before that number ends."""
    found: dict[int, tuple[float | None, int]] = {}
    opened: list[int] = []
    last = 0
    for position, mark in marks:
        if mark == "(":
            opened.append(position)
        elif mark == ")":
            if not opened:
                raise fault(source, position, "a ')' closes nothing", r"remove it, or write \) for the character")
            tail = _NUMBERED.fullmatch(source, last, position)
            value = explicit_weight(source, position, tail.group(2)) if tail else None
            end = position if value is None or tail is None else tail.end(1)
            found[opened.pop()] = found[position] = (value, end)
        last = position + len(mark)
    if opened:
        raise fault(source, opened[-1], "a '(' is not closed", r"close it, or write \( for the character")
    return found
