"""Captions say what a scene shows, and reading them gives the scene back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin.core.errors import InputError
from langevin.picturebook.captions import PHRASES, Request, Wish, describe, parse, request_of, vocabulary
from langevin.picturebook.world import sample_scene


@settings(max_examples=1500, deadline=None)
@given(seed=st.integers(0, 2**32), held_out=st.booleans())
def test_reading_a_caption_gives_the_scene_back(seed: int, held_out: bool) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, held_out=held_out)
    text = describe(scene, rng)
    read, meant = parse(text), request_of(scene)
    assert read.relation == meant.relation
    assert [(w.kind, w.colour, w.count) for w in read.things] == [(w.kind, w.colour, w.count) for w in meant.things]
    for said, true in zip(read.things, meant.things, strict=True):
        assert said.size == true.size or (said.size is None and true.size == "big")
    assert read.background == meant.background or (read.background is None and meant.background == "plain")
    assert read.style == meant.style or (read.style is None and meant.style == "flat")


def test_captions_use_known_words_and_every_relation_phrase() -> None:
    rng = np.random.default_rng(0)
    texts = [describe(sample_scene(rng), rng) for _ in range(4000)]
    words = {word for text in texts for word in re.findall(r"[a-z]+", text)}
    assert words <= set(vocabulary())
    for phrase in PHRASES:
        assert any(f" {phrase} " in text for text in texts)
    assert len(set(texts)) > 3500


def test_the_prompt_of_the_readme() -> None:
    assert parse("a red house under a yellow sun, night") == Request(
        (Wish("sun", "yellow"), Wish("house", "red")), "above", "night", None
    )


@pytest.mark.parametrize(
    "one,other",
    [
        ("a red cat under a blue moon", "a blue moon above a red cat"),
        ("a red cat below a blue moon", "a blue moon over a red cat"),
        ("a red cat right of a blue moon", "a blue moon left of a red cat"),
        ("a red cat to the right of a blue moon at night", "a blue moon to the left of a red cat, night"),
        ("A red cat, in the snow, in chalk style.", "a red cat, snow, chalk style"),
        ("two tiny pink flowers, pixel art", "two small pink flowers in pixel style"),
        ("a fish in the sea", "one fish, sea"),
        ("a fish on a plain background", "the fish, plain"),
        ("an orange tree, outline", "an orange tree in outline style"),
    ],
)
def test_two_ways_to_say_the_same(one: str, other: str) -> None:
    assert parse(one) == parse(other)


@pytest.mark.parametrize(
    "text,hint",
    [
        ("a red hous", "'hous'; did you mean 'house'"),
        ("a purpel cat", "'purpel'; did you mean 'purple'"),
        ("a red cat benight a sun", "'benight'"),
        ("a photo of an astronaut", "'photo'"),
        ("red", "names no thing"),
        ("", "names no thing"),
        ("a red cat above", "names no thing"),
        ("a red cat a blue dog", "'dog'"),
        ("a red cat a blue car", "'blue' is out of place|'car' is out of place"),
        ("a cat of a sun", "'of' is out of place"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        parse(text)


def test_what_a_prompt_leaves_open_stays_open() -> None:
    assert parse("a cat") == Request((Wish("cat"),), None, None, None)
