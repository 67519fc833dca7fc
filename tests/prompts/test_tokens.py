"""Rows of token ids: the same as the tokenizer's for short texts, and nothing lost of long ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langevin.core.errors import InputError
from langevin.prompts.data import Fragment, Passage
from langevin.prompts.tokens import empty_row, expand_words, frame_of, rows_of
from tests.prompts.reading import only
from tests.prompts.towers import tokenizer

SLOW_FIXTURE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ids(text: str, words, length: int = 77) -> list[int]:
    """Return the tokenizer's own ids."""
    return words(text, padding="max_length", truncation=True, max_length=length).input_ids


def said(row, frame) -> list[int]:
    """Return the ids of a row without frame and padding."""
    return list(row.ids[len(frame.before) : row.used - len(frame.after)])


def bare(text: str, words) -> list[int]:
    return words(text, add_special_tokens=False, verbose=False).input_ids


@pytest.mark.parametrize("name", ["words", "other_words"])
@pytest.mark.parametrize("length", [77, 20])
@pytest.mark.parametrize("text", ["", "a cat", "a cat, two dogs.", "!", "  a   cat  "])
def test_short_texts_have_the_ids_of_the_tokenizer(name, length, text, request) -> None:
    words = request.getfixturevalue(name)
    frame = frame_of(words, length)
    (row,) = rows_of(only(text, None), words, frame)
    assert list(row.ids) == ids(text, words, length)
    assert sum(words(text, padding="max_length", max_length=length).attention_mask) == row.used
    assert list(empty_row(frame).ids) == ids("", words, length)


def test_the_frame_of_tokenizers_that_pad_differently(words, other_words) -> None:
    assert (frame_of(words).pad, frame_of(other_words).pad) == (193, 0)
    assert frame_of(words).room == 75


@SLOW_FIXTURE
@given(text=st.text(alphabet="ab ,.xyz-", max_size=600))
def test_rows_hold_every_token_once_and_in_order(words, text) -> None:
    frame = frame_of(words)
    rows = rows_of(only(text, None), words, frame)
    assert [number for row in rows for number in said(row, frame)] == bare(text, words)
    assert all(len(row.ids) == 77 for row in rows)


def test_a_full_row_ends_with_a_word(words) -> None:
    frame = frame_of(words)
    rows = rows_of(only("cat " * 74 + "xyz dog", None), words, frame)
    assert [len(said(row, frame)) for row in rows] == [74, 4]


def test_a_comma_near_the_end_of_a_row_ends_it(words) -> None:
    frame = frame_of(words)
    rows = rows_of(only("cat " * 60 + ", " + "dog " * 40, None), words, frame)
    assert [len(said(row, frame)) for row in rows] == [61, 40]
    rows = rows_of(only("cat " * 40 + ", " + "dog " * 60, None), words, frame)
    assert [len(said(row, frame)) for row in rows] == [75, 26]


def test_a_word_longer_than_a_row_is_cut(words) -> None:
    frame = frame_of(words)
    rows = rows_of(only("a " + "x" * 200, None), words, frame)
    assert [len(said(row, frame)) for row in rows] == [1, 75, 75, 50]


def test_exactly_full(words) -> None:
    frame = frame_of(words)
    assert len(rows_of(only("cat " * 75, None), words, frame)) == 1
    assert len(rows_of(only("cat " * 76, None), words, frame)) == 2


def test_weights_and_owners_follow_their_tokens(words) -> None:
    frame = frame_of(words, 12)
    (row,) = rows_of(only("a (cat xy:1.5) b", "a1111"), words, frame)
    assert row.weights == (1, 1, 1.5, 1.5, 1.5, 1, 1, 1, 1, 1, 1, 1)
    assert row.owners == (-1, 0, 1, 1, 1, 2, -1, -1, -1, -1, -1, -1)


def test_break_fills_the_row_up(words) -> None:
    frame = frame_of(words)
    rows = rows_of(only("a BREAK cat", "a1111"), words, frame)
    assert [list(row.ids) for row in rows] == [ids("a", words), ids("cat", words)]


def test_truncation_is_that_of_the_tokenizer_and_names_the_rest(words, log) -> None:
    frame = frame_of(words)
    text = "cat " * 74 + "xyz dog"
    (row,) = rows_of(only(text, None), words, frame, truncate=True)
    assert list(row.ids) == ids(text, words)
    assert "3 tokens too many" in log.text and "'yz dog'" in log.text
    log.clear()
    rows_of(only("cat " * 75, None), words, frame, truncate=True)
    assert log.text == ""


@pytest.fixture
def learned(tmp_path):
    """A tokenizer with a learned word of three tokens and one of one."""
    words = tokenizer(tmp_path)
    words.add_tokens(["<x>", "<x>_1", "<x>_2", "<y>", "<x>z", "<x>z_1"])
    return words


def test_learned_words_are_written_out(learned) -> None:
    assert expand_words("a <x>, <y>", learned) == "a <x> <x>_1 <x>_2, <y>"
    assert expand_words("a <x>z", learned) == "a <x>z <x>z_1"
    written = "a <x> <x>_1 <x>_2"
    assert expand_words(written, learned) == written


def test_learned_words_keep_their_weight_and_are_not_cut(learned) -> None:
    frame = frame_of(learned)
    (row,) = rows_of(only("a (<x>:1.2)", "a1111"), learned, frame)
    assert row.weights[:6] == (1, 1, 1.2, 1.2, 1.2, 1)
    rows = rows_of(only("cat " * 74 + "<x> b", None), learned, frame)
    assert [len(said(row, frame)) for row in rows] == [74, 4]


def test_ten_thousand_words_take_as_many_rows_as_they_need(words) -> None:
    frame = frame_of(words)
    rows = rows_of(Passage(tuple([(Fragment("cat " * 10_000),)])), words, frame)
    assert len(rows) == 134 and sum(len(said(row, frame)) for row in rows) == 10_000


def test_limits_that_cannot_be(words, tmp_path) -> None:
    with pytest.raises(InputError, match="no room for words"):
        frame_of(words, 2)
    boundless = tokenizer(tmp_path)
    boundless.model_max_length = int(1e30)
    with pytest.raises(InputError, match="model_max_length"):
        frame_of(boundless)


def test_threads_share_a_tokenizer(words) -> None:
    def work(k: int) -> list[tuple[int, ...]]:
        frame = frame_of(words, 20 + k % 5)
        return [row.ids for row in rows_of(only("cat " * (10 + k), None), words, frame)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(60))) == [work(k) for k in range(60)]
