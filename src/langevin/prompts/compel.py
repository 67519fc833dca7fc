r"""The syntax of the compel library.

`word+` multiplies the weight by 1.1 per plus, `word-` by 0.9 per minus; so do `(a phrase)++` and `"a phrase"-`, and
`(a phrase)1.3` multiplies it by 1.3. Brackets nest. `("a", "b").blend(0.7, 0.3)` is the weighted mean of embeddings
(with `no_normalize` as last argument the weighted sum), `("a", "b").and()` puts them one after the other. A backslash
makes text of `( ) " + -` and of itself.

Signs count at the end of a word only: `well-known` and a lone `-` are text. Brackets and quotation marks that do not
match are an error, since compel documents no reading of them; so is `.swap()`, which compel ignores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from .data import Blend, Join, Member, Passage, Script, Text
from .writing import Writer, fault, number

NAME = "compel"
PLUS, MINUS = 1.1, 0.9

_TOKENS = re.compile(r'\\[()"+\\-]|[()",.\\]|[^\s()",.\\]+|\s+')
_SUFFIX = re.compile(r"\++|-+|\d*\.\d+|\d+")
_CALL = re.compile(r"\s*\.\s*(blend|and)\s*\(([^()]*)\)\s*")
_METHOD = re.compile(r"(?<!\\)\.(blend|and|swap)\(")
_AFTER_WORD = ";:!?"


def parse(source: str) -> Script:
    """Read a prompt.

    Raises:
        InputError: for brackets and quotation marks that do not match, and for a wrong `.blend()`, `.and()`.
    """
    text = _call(source) or _passage(source, 0, len(source))
    return Script(source, lambda step, steps: (Member(text),))


def _call(source: str) -> Text | None:
    """Return the blend or join that a whole prompt is, else None."""
    methods = list(_METHOD.finditer(source))
    if not methods:
        return None
    for method in methods:
        if method.group(1) == "swap":
            raise fault(source, method.start(), ".swap() is not supported", "leave it out, or write a blend")
    method = methods[-1]
    if len(methods) > 1:
        cure = "write one .blend() or .and() over texts"
        raise fault(source, method.start(), f".{method.group(1)}() is not the only one", cure)
    begin = len(source) - len(source.lstrip())
    end, commas = _list(source, begin) if source.startswith("(", begin) else (None, [])
    call = _CALL.fullmatch(source, end) if end is not None else None
    if call is None or end is None:
        form = f'("a", "b").{method.group(1)}(1, 1)'
        cure = rf"the form is {form}, with nothing before or after it; \( makes text of a bracket"
        raise fault(source, method.start(), f".{method.group(1)}() does not make up the whole prompt", cure)
    edges = [begin, *commas, end - 1]
    parts = [_passage(source, left + 1, right) for left, right in pairwise(edges)]
    weights, normalize = _arguments(source, call, len(parts))
    return Blend(tuple(parts), weights, normalize) if call.group(1) == "blend" else Join(tuple(parts), weights)


def _list(source: str, begin: int) -> tuple[int | None, list[int]]:
    """Return where the list that starts at `begin` ends, and the commas that divide it."""
    depth, quoted, commas = 0, False, []
    for match in _TOKENS.finditer(source, begin):
        token = match.group()
        if token == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif token == "(":
            depth += 1
        elif token == "," and depth == 1:
            commas.append(match.start())
        elif token == ")":
            depth -= 1
            if depth == 0:
                return match.end(), commas
    return None, commas


def _arguments(source: str, call: re.Match, count: int) -> tuple[tuple[float, ...], bool]:
    """Return the weights of a call and whether they are normalised."""
    words = [word.strip() for word in call.group(2).split(",")] if call.group(2).strip() else []
    blend, normalize = call.group(1) == "blend", True
    if blend and words and words[-1] == "no_normalize":
        words, normalize = words[:-1], False
    weights = [number(word) for word in words] or [1.0] * count
    known = [weight for weight in weights if weight is not None]
    if len(known) != len(weights):
        bad = words[weights.index(None)]
        raise fault(source, call.start(2), f"{bad!r} is no weight", "write numbers, separated by commas")
    if len(known) != count:
        raise fault(source, call.start(1), f"{len(known)} weights for {count} texts", "write one weight for each text")
    if blend and normalize and abs(sum(known)) < 1e-6:
        cure = "write other weights, or add no_normalize"
        raise fault(source, call.start(1), "the weights add up to 0 and cannot be normalised", cure)
    return tuple(known), normalize


@dataclass
class _Token:
    """A word, a blank, or an opening or closing mark; a group's factor is known when it closes."""

    text: str
    at: int
    kind: str
    factor: float = 1.0


def _passage(source: str, start: int, end: int) -> Passage:
    """Read weighted text."""
    writer, weights = Writer(source), [1.0]
    for token in _tokens(source, start, end):
        if token.kind == "open":
            weights.append(weights[-1] * token.factor)
        elif token.kind == "close":
            weights.pop()
        elif token.kind == "word":
            _word(writer, token, weights[-1])
        else:
            writer.add(token.text, weights[-1], at=token.at)
    return Passage(writer.finish(), NAME)


def _tokens(source: str, start: int, end: int) -> list[_Token]:
    """Return the tokens of a part of the source, every group matched with its factor."""
    tokens: list[_Token] = []
    opened: list[_Token] = []
    while start < end:
        match = _TOKENS.match(source, start, end)
        assert match is not None
        text, at, start = match.group(), start, match.end()
        last = opened[-1].text if opened else ""
        if text == "(" or (text == '"' and last != '"'):
            opened.append(_Token(text, at, "open"))
            tokens.append(opened[-1])
        elif text in (")", '"'):
            if text == ")" and last != "(":
                raise fault(source, at, "a ')' closes nothing", r"remove it, or write \) for the character")
            suffix = _SUFFIX.match(source, start, end)
            if suffix is not None:
                start, opened[-1].factor = suffix.end(), _factor(suffix.group())
            opened.pop()
            tokens.append(_Token(text, at, "close"))
        elif len(text) > 1 and text[0] == "\\":
            tokens.append(_Token(text[1], at, "text"))
        else:
            tokens.append(_Token(text, at, "word"))
    if opened:
        mark = opened[-1]
        raise fault(source, mark.at, f"a {mark.text} is not closed", rf"close it, or write \{mark.text} for it")
    return tokens


def _factor(suffix: str) -> float:
    if suffix[0] in "+-":
        return (PLUS if suffix[0] == "+" else MINUS) ** min(len(suffix), 1000)
    return float(suffix)


def _word(writer: Writer, word: _Token, weight: float) -> None:
    """Write a word; signs at its end weigh it."""
    stem = word.text.rstrip(_AFTER_WORD)
    sign = stem[-1:]
    core = stem.rstrip(sign) if sign in ("+", "-") else ""
    if core and core[-1] not in "+-":
        writer.add(core, weight * _factor(stem[len(core) :]), at=word.at)
        writer.add(word.text[len(stem) :], weight, at=word.at)
    else:
        writer.add(word.text, weight, at=word.at)
