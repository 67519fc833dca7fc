"""ComfyUI's syntax."""

from __future__ import annotations

import pytest

from langevin.core.errors import InputError
from langevin.prompts.syntax import parse
from tests.prompts.reading import weights

WEIGHTS = {
    "a (good cat:1.2) or (bad cat:0.8)": [("a", 1.0), ("good cat", 1.2), ("or", 1.0), ("bad cat", 0.8)],
    "(cat)": [("cat", 1.1)],
    "((cat))": [("cat", 1.21)],
    "((a:1.2) b:1.5)": [("a", 1.2), ("b", 1.5)],
    "((a) b:1.5)": [("a", 1.65), ("b", 1.5)],
    "((a:0.5))": [("a", 0.5)],
    "(a:b)": [("a:b", 1.1)],
    "(a:b:2)": [("a:b", 2.0)],
    r"\(cat\)": [("(cat)", 1.0)],
    r"(\(cat\):1.3)": [("(cat)", 1.3)],
    "[cat] a AND b BREAK c": [("[cat] a AND b BREAK c", 1.0)],
    "": [],
    "()": [],
}


@pytest.mark.parametrize("text", WEIGHTS)
def test_weights(text) -> None:
    assert weights(text, "comfy") == WEIGHTS[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a)", r"a '\)' closes nothing at character 2"),
        ("b (a", r"a '\(' is not closed at character 3"),
        ("(a:1..2)", "is no number"),
        ("(a:1e9)", None),
        ("(a:99999)", "the weight 99999"),
    ],
)
def test_errors_name_the_place(text, message) -> None:
    if message is None:
        assert weights(text, "comfy") == [("a:1e9", 1.1)]
        return
    with pytest.raises(InputError, match=message):
        parse(text, "comfy")
