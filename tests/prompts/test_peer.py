"""Plain prompts have the peer's embeddings, bit for bit, with one text encoder and with two."""

from __future__ import annotations

import diffusers
import pytest
import torch

from langevin.prompts.encoding import encode
from langevin.prompts.reader import Tower
from langevin.prompts.syntax import SYNTAXES, parse_all
from tests.pipelines import tiny

TEXTS = ["a cat", "a dog, two cats."]
pytestmark = pytest.mark.parity
every_syntax = pytest.mark.parametrize("syntax", [None, *SYNTAXES])


def xl_towers(pipe, clip_skip: int | None = None) -> list[Tower]:
    """The encoders of SDXL: the last layer but one, `clip_skip` more left out; only the second pools."""

    def tower(tokenizer, encoder) -> Tower:
        def encode_ids(ids, mask):
            output = encoder(ids, attention_mask=mask, output_hidden_states=True)
            return output.hidden_states[-2 - (clip_skip or 0)], getattr(output, "text_embeds", None)

        return Tower(encode_ids, tokenizer)

    return [tower(pipe.tokenizer, pipe.text_encoder), tower(pipe.tokenizer_2, pipe.text_encoder_2)]


@pytest.fixture(scope="module")
def peer_xl(words, other_words, encoder, second_encoder):
    """The peer's SDXL pipeline around the tiny encoders."""
    pipe = diffusers.StableDiffusionXLPipeline(
        **tiny.networks(diffusers),
        scheduler=tiny.scheduler(diffusers, "DDIMScheduler"),
        tokenizer=words,
        tokenizer_2=other_words,
        text_encoder=encoder,
        text_encoder_2=second_encoder,
        add_watermarker=False,
    )
    return pipe


@every_syntax
@pytest.mark.parametrize("clip_skip", [None, 1])
def test_two_encoders(peer_xl, syntax, clip_skip) -> None:
    second = ["dog", "cat"]
    negative = ["a b", ""]
    options = {"prompt_2": second, "negative_prompt": negative, "negative_prompt_2": second, "clip_skip": clip_skip}
    with torch.no_grad():
        theirs = peer_xl.encode_prompt(TEXTS, device="cpu", do_classifier_free_guidance=True, **options)
        positive = encode(xl_towers(peer_xl, clip_skip), [parse_all(TEXTS, syntax), parse_all(second, syntax)]).only()
        opposite = encode(xl_towers(peer_xl), [parse_all(negative, syntax), parse_all(second, syntax)]).only()
    ours = (positive.hidden, opposite.hidden, positive.pooled, opposite.pooled)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@every_syntax
@pytest.mark.parametrize("clip_skip", [None, 1])
def test_one_encoder(tmp_path, syntax, clip_skip) -> None:
    pipe = tiny.stable_diffusion(diffusers, tmp_path)
    pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder  # where the peer looks for the last normalisation

    def encode_ids(ids, mask):
        output = pipe.text_encoder(ids, attention_mask=mask, output_hidden_states=True)
        if clip_skip is None:
            return output[0], None
        return pipe.text_encoder.final_layer_norm(output.hidden_states[-1 - clip_skip]), None

    with torch.no_grad():
        theirs, _ = pipe.encode_prompt(TEXTS, "cpu", 1, False, clip_skip=clip_skip)
        ours = encode([Tower(encode_ids, pipe.tokenizer)], [parse_all(TEXTS, syntax)]).only().hidden
    assert torch.equal(ours, theirs)
