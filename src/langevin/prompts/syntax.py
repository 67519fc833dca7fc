"""From the name of a syntax to its parser."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..core.errors import InputError, check_choice
from . import a1111, comfy, compel
from .data import Fragment, Member, Passage, Script
from .writing import fault

SYNTAXES: dict[str, Callable[[str], Script]] = {
    a1111.NAME: a1111.parse,
    comfy.NAME: comfy.parse,
    compel.NAME: compel.parse,
}

_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(text: str, syntax: str | None = None) -> Script:
    """Read a prompt.

    Args:
        syntax: "a1111", "comfy" or "compel"; None takes the text as it is.

    Raises:
        InputError: for another syntax, and for a prompt that the syntax cannot read; names the position.
    """
    if not isinstance(text, str):
        raise InputError(f"A prompt is text, not {type(text).__name__}.")
    half = _SURROGATE.search(text)
    if half is not None:
        what = f"half of a character ({half.group()!a})"
        raise fault(text, half.start(), what, "the text was cut or decoded wrongly; pass it as it was")
    if syntax is None:
        return plain(text)
    check_choice("`prompt_syntax`", syntax, SYNTAXES)
    return SYNTAXES[syntax](text)


def parse_all(texts: str | Sequence[str], syntax: str | None = None) -> list[Script]:
    """Read one prompt or several."""
    return [parse(text, syntax) for text in ([texts] if isinstance(texts, str) else texts)]


def plain(text: str) -> Script:
    """Return a text that means itself."""
    prompt = (Member(Passage(((Fragment(text),) if text else (),))),)
    return Script(text, lambda step, steps: prompt)
