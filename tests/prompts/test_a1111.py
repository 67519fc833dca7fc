"""The web interface's syntax: weights, schedules, chunks and conditions."""

from __future__ import annotations

import pytest

from langevin.core.errors import InputError
from langevin.prompts.syntax import parse
from tests.prompts.reading import chunks, only, texts, weights

WEIGHTS = {
    "a cat": [("a cat", 1.0)],
    "a (cat) sat": [("a", 1.0), ("cat", 1.1), ("sat", 1.0)],
    "a ((cat)) sat": [("a", 1.0), ("cat", 1.21), ("sat", 1.0)],
    "a [cat] sat": [("a", 1.0), ("cat", 0.9091), ("sat", 1.0)],
    "(cat:1.3)": [("cat", 1.3)],
    "(cat: .5 )": [("cat", 0.5)],
    "(cat:-1)": [("cat", -1.0)],
    "((cat:1.5):2)": [("cat", 3.0)],
    "(a (b:1.5) c:2)": [("a", 2.0), ("b", 3.0), ("c", 2.0)],
    "([cat])": [("cat", 1.0)],
    "(un)(broken)": [("unbroken", 1.1)],
    "(time 12:30)": [("time 12", 30.0)],
    r"(time 12\:30)": [("time 12:30", 1.1)],
    "(a:b)": [("a:b", 1.1)],
    "a:b": [("a:b", 1.0)],
    "a | b": [("a | b", 1.0)],
    "cat:1.3": [("cat:1.3", 1.0)],
    r"\(cat\) \[dog\] \\": [("(cat) [dog] \\", 1.0)],
    r"a \b": [(r"a \b", 1.0)],
    "": [],
    "()": [],
    "(:1.2)": [],
}


@pytest.mark.parametrize("text", WEIGHTS)
def test_weights(text) -> None:
    assert weights(text, "a1111") == WEIGHTS[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(cat sat", [("cat sat", 1.1)]),
        ("a [cat", [("a", 1.0), ("cat", 0.9091)]),
        ("((a) b", [("a", 1.21), ("b", 1.1)]),
        ("cat) :) ]", [("cat) :) ]", 1.0)]),
        ("(a] b)", [("a] b", 1.1)]),
    ],
)
def test_an_open_bracket_reaches_to_the_end_and_a_stray_one_is_text(text, expected) -> None:
    assert weights(text, "a1111") == expected


def test_a_switch_by_step_number_and_by_share() -> None:
    assert texts("[a:b:2]", 4) == ["a", "a", "b", "b"]
    assert texts("[a:b:0.25]", 4) == ["a", "b", "b", "b"]
    assert texts("[a:b:0]", 2) == ["b", "b"]
    assert texts("[a:b:1]", 3) == ["a", "b", "b"]
    assert texts("[a:b:1.0]", 3) == ["a", "a", "a"]
    assert texts("[a:b:.29]", 100).count("a") == 29


def test_adding_and_removing() -> None:
    assert texts("[b:1]", 2) == ["", "b"]
    assert texts("[:b:1]", 2) == ["", "b"]
    assert texts("[a::1]", 2) == ["a", ""]


def test_turns() -> None:
    assert texts("[a|b]", 5) == ["a", "b", "a", "b", "a"]
    assert texts("[a|b|]", 4) == ["a", "b", "", "a"]


def test_nesting_of_everything() -> None:
    assert texts("x [[a|b]:c [d:e:3]:2] y", 4) == ["x a y", "x b y", "x c d y", "x c e y"]
    assert weights("([a:(b:2):1] c:1.5)", "a1111", 0, 2) == [("a c", 1.5)]
    assert weights("([a:(b:2):1] c:1.5)", "a1111", 1, 2) == [("b", 3.0), ("c", 1.5)]


def test_a_timeline_names_each_text_once() -> None:
    timeline = parse("[a|b]", "a1111").timeline(6)
    assert len(timeline.prompts) == 2 and timeline.index == (0, 1, 0, 1, 0, 1)
    constant = parse("a (b)", "a1111").timeline()
    assert len(constant.prompts) == 1 and constant.index == (0,)


def test_a_changing_prompt_needs_the_number_of_steps() -> None:
    with pytest.raises(InputError, match="how many"):
        parse("[a|b]", "a1111").at()
    with pytest.raises(InputError, match="how many"):
        parse("[a|b]", "a1111").timeline()


def test_break_starts_a_chunk_and_keeps_the_weight() -> None:
    assert chunks(only("a BREAK b", "a1111")) == [[("a", 1.0)], [("b", 1.0)]]
    assert chunks(only("(a BREAK b:1.2) c", "a1111")) == [[("a", 1.2)], [("b", 1.2), ("c", 1.0)]]
    assert chunks(only("a BREAK", "a1111")) == [[("a", 1.0)]]
    assert chunks(only("a BREAK BREAK b", "a1111")) == [[("a", 1.0)], [], [("b", 1.0)]]
    assert chunks(only("BREAKFAST", "a1111")) == [[("BREAKFAST", 1.0)]]


def test_and_makes_members_with_weights() -> None:
    members = parse("a (cat:1.2) AND b :0.5 AND c:-1", "a1111").at()
    assert [member.weight for member in members] == [1.0, 0.5, -1.0]
    assert [member.text.text.strip() for member in members] == ["a cat", "b", "c"]
    assert len(parse("ANDES and SAND", "a1111").at()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a [b) c]", r"'\)' crosses another bracket at character 6 .*'\[' of character 4"),
        ("(a AND b)", "AND stands inside brackets at character 4"),
        ("[a:b:1.5]", r"\[...:when\] is 1.5 at character 6 .*\(word:1.3\)"),
        ("[a:b:-1]", r"\[...:when\] is -1"),
        ("[a:b:c:0.5]", "one part too many"),
        ("[a|b:0.5]", "takes no number"),
        ("(a:1.2.3)", "'1.2.3' is no number"),
        ("(a:5000)", "the weight 5000 at character 2 .*within 1000"),
        ("[a:(b:5000):0.5]", "the weight 5000"),
        ("(" * 10_000 + "a", "the weight infinity"),
    ],
)
def test_what_has_no_meaning_is_an_error_that_names_the_place(text, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(text, "a1111").timeline(2)
