"""The package `compel` works on this library's pipelines, and our reading of its syntax gives its numbers."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch

import langevin
from langevin.prompts.encoding import encode
from langevin.prompts.syntax import parse_all
from tests.pipelines import tiny

compel = importlib.import_module("compel")
logging.getLogger("compel").setLevel(logging.ERROR)

PROMPTS = [
    "a cat",
    "a cat+ sat",
    "a cat+++ sat++ b",
    "a (cat)0.5 sat",
    "a (cat)1.5 (sat)0.8 (b)0.3",
    "a cat- sat- b--",
    "a (big (fat)+ cat)-- sat",
    "a (cat)0 sat",
    "(a)0.5 (b)0.5 dog",
    "(a)0.5 (b)0.6 (c)0.7 dog+",
    '("a cat", "dog sat").blend(0.7, 0.3)',
    '("a cat+", "dog- sat").blend(1, 1)',
    '("a", "b").blend(1, -0.3, no_normalize)',
    '("a cat", "dog").and()',
    '("a cat++", "dog-", "b").and(1, 0.5, 2)',
]
WITH_TWO_ENCODERS = [text for text in PROMPTS if ".blend(" not in text and ".and(1" not in text]
"""The package raises for the others when it has two encoders."""


@pytest.mark.parity
@pytest.mark.parametrize("text", PROMPTS)
def test_one_encoder_gives_the_numbers_of_the_package(sd, encoder, text) -> None:
    theirs = compel.Compel(tokenizer=sd.tokenizer, text_encoder=encoder)(text)
    ours = encode([sd], [parse_all(text, "compel")]).only().hidden
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("text", WITH_TWO_ENCODERS)
def test_two_encoders_give_the_numbers_of_the_package(sdxl, encoder, second_encoder, text) -> None:
    theirs, pooled = compel.Compel(
        tokenizer=[tower.tokenizer for tower in sdxl],
        text_encoder=[encoder, second_encoder],
        returned_embeddings_type=compel.ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        requires_pooled=[False, True],
    )(text)
    ours = encode(sdxl, [parse_all(text, "compel")] * 2).only()
    assert ours.hidden.shape == theirs.shape and (ours.hidden - theirs).abs().max() <= 1e-5
    if text == "a cat":  # the package's pooled states change with weights, ours are those of the stripped text
        assert (ours.pooled - pooled).abs().max() <= 1e-5


def test_a_pipeline_takes_the_embeddings_of_the_package(tmp_path) -> None:
    pipe = tiny.stable_diffusion(langevin, tmp_path)
    package = compel.Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)
    with torch.no_grad():
        embeds = {text: package(text) for text in ("a cat", "a cat++")}
    options = {"num_inference_steps": 2, "output_type": "np"}
    pictures = {
        text: pipe(prompt_embeds=rows, generator=torch.Generator().manual_seed(0), **options).images
        for text, rows in embeds.items()
    }
    plain = pipe("a cat", generator=torch.Generator().manual_seed(0), **options).images
    assert abs(pictures["a cat"] - plain).max() <= 1e-6
    assert abs(pictures["a cat++"] - plain).max() > 1e-6


def test_the_package_s_wrapper_takes_a_pipeline(tmp_path) -> None:
    pipe = tiny.stable_diffusion(langevin, tmp_path)
    with torch.no_grad():
        made = compel.CompelForSD(pipe)("a cat++", negative_prompt="dog")
    embeds = {"prompt_embeds": made.embeds, "negative_prompt_embeds": made.negative_embeds}
    picture = pipe(**embeds, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 16, 16, 3)
