"""The picturebook's tokenizer: words of the grammar are tokens, any text survives a round trip."""

from __future__ import annotations

import json

import numpy as np
import pytest

from langevin.picturebook import tokenizer
from langevin.picturebook.captions import describe, vocabulary
from langevin.picturebook.world import sample_scene


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.load(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_is_one_token(words):
    for word in vocabulary():
        assert len(words(word).input_ids) == 3, word


def test_captions_survive_a_round_trip(words):
    rng = np.random.default_rng(0)
    for _ in range(50):
        caption = describe(sample_scene(rng), rng)
        ids = words(caption).input_ids
        assert len(ids) <= tokenizer.LENGTH
        assert words.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == caption


@pytest.mark.parametrize("text", ["a zebra, naïvely", "하늘을 나는 집", "x" * 10, "100 cats & 1 😀"])
def test_any_text_can_be_encoded(words, text):
    ids = words(text).input_ids
    assert words.unk_token_id not in ids[1:-1]
    assert words.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_prompts_are_padded_and_cut_to_the_length(words):
    inputs = words(["a cat", "cat " * 50], padding="max_length", truncation=True, return_tensors="pt")
    assert inputs.input_ids.shape == (2, tokenizer.LENGTH)
    assert words.model_max_length == tokenizer.LENGTH


def test_case_does_not_matter(words):
    assert words("A Red HOUSE").input_ids == words("a red house").input_ids


def test_the_files_depend_on_the_words_alone(tmp_path):
    tokenizer.write(tmp_path / "a")
    tokenizer.write(tmp_path / "b")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    ids = json.loads((tmp_path / "a" / "vocab.json").read_text())
    assert sorted(ids.values()) == list(range(len(ids)))


def test_merges_join_the_most_frequent_pair_first():
    merges = tokenizer.learn_merges(["low", "lower", "slow"])
    assert merges[0] == ("l", "o")
    assert ("lo", "w</w>") in merges
