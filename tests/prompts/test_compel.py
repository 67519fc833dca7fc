"""The compel library's syntax, with the library as the oracle where both read a prompt."""

from __future__ import annotations

import importlib
import logging

import pytest

from langevin.core.errors import InputError
from langevin.prompts.data import Blend, Join
from langevin.prompts.syntax import parse
from tests.prompts.reading import chunks, only, weights

SHARED = [
    "a cat",
    "a cat+ sat",
    "a cat++ sat--",
    "a (big cat)1.3 sat",
    "a (big (fat)+ cat)++ sat",
    "(a)0.5 (b)0.5",
    "(a (b)1.2 (c)0.5)1.1",
    "a well-known cat",
    "well-known+ x",
    "pre- and post",
    "a + b - c",
    'a "big cat"++ x',
    'a "big (cat)+ x"++ y',
    "a, cat+, dog",
    "cat+.",
    "it's+ here",
    "(a) b",
    "(a)1.5x",
    "(a)-0.5",
    "((a)1.5)1.2",
    "(do-it)+",
    "<cat>+ x",
    "100%+ é+ ü-",
    r"\(a\) b",
    r"\"a\" b",
    "x (a)+,(b)-",
    "cat+\ndog-",
    "[a]+ b",
]


def folded(pairs: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return (text, weight) pairs with all blanks removed, neighbours of one weight joined."""
    found: list[tuple[str, float]] = []
    for text, weight in pairs:
        text = "".join(text.split())
        if found and found[-1][1] == weight:
            text = found.pop()[0] + text
        if text:
            found.append((text, weight))
    return found


@pytest.fixture(scope="module")
def oracle():
    """The library's own parser."""
    compel = importlib.import_module("compel")
    logging.getLogger("compel").setLevel(logging.ERROR)
    return compel.PromptParser()


@pytest.mark.parametrize("text", SHARED)
def test_weights_are_those_of_the_library(text, oracle) -> None:
    (prompt,) = oracle.parse_conjunction(text).prompts
    expected = [(fragment.text, round(fragment.weight, 4)) for fragment in prompt.children]
    assert folded(weights(text, "compel")) == folded(expected)


def test_signs_inside_a_word_and_alone_are_text() -> None:
    for text in ("a+b", "cat--dog", "--", "a + b", "-a", "cat+-"):
        assert weights(text, "compel") == [(text, 1.0)]


def test_signs_before_every_mark_count() -> None:
    assert weights("cat+! dog-?", "compel") == [("cat", 1.1), ("!", 1.0), ("dog", 0.9), ("?", 1.0)]


def test_escapes() -> None:
    assert weights(r"c\+\+ \"x\" \\ 5\-", "compel") == [('c++ "x" \\ 5-', 1.0)]


def test_blend() -> None:
    blend = only('("a cat+", "b, c").blend(0.7, 0.3)', "compel")
    assert isinstance(blend, Blend) and blend.weights == (0.7, 0.3) and blend.normalize
    assert [chunks(part) for part in blend.parts] == [[[("a", 1.0), ("cat", 1.1)]], [[("b, c", 1.0)]]]
    assert not only('("a", "b").blend(1, -1, no_normalize)', "compel").normalize
    assert only('("a", "b").blend()', "compel").weights == (1.0, 1.0)
    assert len(only("(a, (b, c)+).blend(1, 1)", "compel").parts) == 2


def test_and() -> None:
    join = only(' ("a", "b").and(1, 0.5) ', "compel")
    assert isinstance(join, Join) and join.weights == (1.0, 0.5)
    assert only('("a", "b", "c").and()', "compel").weights == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a", r"a \( is not closed at character 1"),
        ("b a)", r"a '\)' closes nothing at character 4"),
        ('a 12" ruler', r'a " is not closed at character 5'),
        ('("a)" b', r"a '\)' closes nothing at character 4"),
        ('("a", "b").blend(1)', "1 weights for 2 texts"),
        ('("a", "b").blend(1, x)', "'x' is no weight"),
        ('("a", "b").blend(1, -1)', "add up to 0"),
        ('("a", "b").blend(1, 1) tail', "does not make up the whole prompt"),
        ('head ("a", "b").and()', "does not make up the whole prompt"),
        ('("a", ("b", "c").blend(1, 1)).and()', "not the only one"),
        ("cat.swap(dog)", "not supported"),
        ("(a)5000", "the weight 5000"),
        ("a" + "+" * 500, "the weight"),
    ],
)
def test_errors_name_the_place(text, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(text, "compel")
