"""Whatever is typed: the parsers answer with a prompt or with InputError, soon, and leave plain text alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin.core.errors import InputError
from langevin.prompts.data import Passage
from langevin.prompts.syntax import SYNTAXES, parse, parse_all
from tests.prompts.reading import only

SPECIAL = '()[]:|\\"+-.,'
PIECES = [*SPECIAL, "AND", "BREAK", ".blend(", ".and(", ".swap(", "no_normalize"]
PIECES += ["1.3", "0.5", "2", " ", "\n", "cat", "ü"]
names = pytest.mark.parametrize("syntax", [None, *SYNTAXES])


@names
@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40), steps=st.integers(1, 5))
def test_syntax_soup_never_crashes(syntax, pieces, steps) -> None:
    answer("".join(pieces), syntax, steps)


@names
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(), max_size=80), steps=st.integers(1, 5))
def test_any_text_never_crashes(syntax, text, steps) -> None:
    answer(text, syntax, steps)


def answer(text: str, syntax: str | None, steps: int) -> None:
    """Read a prompt for all steps; only InputError may be raised."""
    try:
        timeline = parse(text, syntax).timeline(steps)
    except InputError:
        return
    assert len(timeline.index) == steps and set(timeline.index) == set(range(len(timeline.prompts)))


@names
@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=80).filter(lambda t: not set(t) & set(SPECIAL)))
def test_text_without_special_characters_comes_back(syntax, text) -> None:
    if "AND" in text or "BREAK" in text:
        return
    passage = only(text, syntax)
    assert [(f.text, f.weight) for chunk in passage.chunks for f in chunk] == [(text, 1.0)]


@names
@pytest.mark.parametrize("text", ["a photo of a cat", "a cat, two dogs - a well-known pair."])
def test_ordinary_prompts_mean_themselves(syntax, text) -> None:
    passage = only(text, syntax)
    assert isinstance(passage, Passage) and passage.text == text and not passage.weighted


@names
@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab ,", min_size=1, max_size=30))
def test_a_weight_of_one_changes_nothing(syntax, text) -> None:
    marked = {"a1111": f"(a{text}:1.0)b", "comfy": f"(a{text}:1)b", "compel": f"(a{text})1.0b"}.get(str(syntax))
    if marked is not None:
        assert only(marked, syntax).chunks == only(f"a{text}b", syntax).chunks


LONG = {
    "words": "word " * 10_000,
    "weighted words": "(word:1.2) " * 10_000,
    "one long word": "x" * 100_000,
    "signs": "cat+ " * 10_000,
    "plus": "+" * 100_000,
    "open": "[" * 10_000,
    "closing": ")" * 10_000,
    "deep": "(" * 10_000 + "a" + ")" * 10_000,
    "deep squares": "[" * 10_000 + "a" + "]" * 10_000,
    "deep switches": "[" * 5_000 + "a" + ":b:0.5]" * 5_000,
    "deep turns": "[" * 5_000 + "a" + "|b]" * 5_000,
    "quotes": '"' * 10_000,
    "backslashes": "\\" * 100_001,
    "colons": "(" + "a:" * 50_000 + ")",
    "bars": "[" + "a|" * 10_000 + "]",
    "members": "a AND " * 3_000,
    "breaks": "a BREAK " * 3_000,
    "list": "(" + "a," * 5_000 + "b).and()",
    "points": "." * 50_000,
}


@names
@pytest.mark.parametrize("kind", LONG)
def test_length_and_depth_cost_little(syntax, kind) -> None:
    start = time.process_time()
    answer(LONG[kind], syntax, 3)
    assert time.process_time() - start < 5, "far more than linear"


@names
def test_a_long_prompt_loses_no_word(syntax) -> None:
    text = " ".join(f"w{k}" for k in range(10_000))
    assert only(text, syntax).text == text


def test_an_unknown_syntax_and_what_is_no_text() -> None:
    with pytest.raises(InputError, match="did you mean 'a1111'"):
        parse("a", "a111")
    with pytest.raises(InputError, match="not int"):
        parse_all(["a", 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"half of a character .* at character 3"):
        parse("a \ud800")
    assert [script.source for script in parse_all("a \U0001f408")] == ["a \U0001f408"]
