"""The prompt language in pipelines: weights, long prompts, prompts that change, conditions joined by AND."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import InputError
from tests.pipelines import tiny

CALL = {"num_inference_steps": 4, "seed": 3, "output_type": "np"}
SYNTAXES = ["a1111", "compel", "comfy"]


def far(a, b) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_plain_text_and_weights_of_one_change_nothing(pipe, syntax) -> None:
    plain = pipe("a cat", **CALL).images
    weighted = {"a1111": "a (cat:1)", "comfy": "a (cat:1)", "compel": "a (cat)1.0"}[syntax]
    assert np.array_equal(pipe("a cat", **CALL, prompt_syntax=syntax).images, plain)
    assert np.array_equal(pipe(weighted, **CALL, prompt_syntax=syntax).images, plain)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_weight_changes_the_picture(pipe, syntax) -> None:
    heavy = {"a1111": "a (cat:1.5)", "comfy": "a (cat:1.5)", "compel": "a (cat)1.5"}[syntax]
    assert far(pipe(heavy, **CALL, prompt_syntax=syntax).images, pipe("a cat", **CALL).images) > 1e-4
    assert far(pipe(heavy, **CALL).images, pipe(heavy, **CALL, prompt_syntax=syntax).images) > 1e-4


def test_all_of_a_long_prompt_counts(pipe) -> None:
    start = "x " * 100
    pictures = [pipe(start + end, **CALL).images for end in ("cat", "dog")]
    cut = [pipe(start + end, **CALL, long_prompt="truncate").images for end in ("cat", "dog")]
    assert far(*pictures) > 1e-4 and np.array_equal(*cut)
    embeds, negative = pipe.encode_prompt(start, negative_prompt="dog")
    assert embeds.shape == negative.shape == (1, 154, tiny.WIDTH)


def test_a_prompt_of_ten_thousand_words(pipe) -> None:
    embeds, _ = pipe.encode_prompt("cat " * 10_000, do_classifier_free_guidance=False)
    assert embeds.shape[1] == 134 * 77 and torch.isfinite(embeds).all()


@pytest.mark.parametrize(("when", "calls"), [("0.5", 2), ("1", 1), ("3", 3)])
def test_a_prompt_that_changes(pipe, when, calls) -> None:
    def switch(inner, step, timestep, tensors):
        tensors["prompt_embeds"] = later if step == calls - 1 else tensors["prompt_embeds"]
        return tensors

    cat, dog = (pipe.encode_prompt(text)[::-1] for text in ("a cat", "a dog"))
    later = torch.cat(dog)
    by_hand = pipe(
        prompt_embeds=cat[1],
        negative_prompt_embeds=cat[0],
        callback_on_step_end=switch,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        **CALL,
    ).images
    assert np.array_equal(pipe(f"a [cat:dog:{when}]", prompt_syntax="a1111", **CALL).images, by_hand)


def test_steps_are_counted_where_the_network_is_asked_twice(pipe) -> None:
    pipe.scheduler = langevin.HeunDiscreteScheduler(**tiny.TABLE)
    plan = pipe.scheduler.plan(4)
    assert plan.numbers == (0, 0, 1, 1, 2, 2, 3)
    assert plan.tail(0.5).numbers == (0, 0, 1)
    seen = []
    unet, forward = pipe.unet, type(pipe.unet).forward

    def watch(self, *args, **kwargs):
        seen.append(kwargs["encoder_hidden_states"][-1].clone())
        return forward(self, *args, **kwargs)

    cat, dog = (pipe.encode_prompt(f"a {word}")[0][0] for word in ("cat", "dog"))
    type(unet).forward = watch
    try:
        pipe("a [cat:dog:2]", prompt_syntax="a1111", **CALL)
    finally:
        type(unet).forward = forward
    assert [torch.equal(x, cat) for x in seen] == [True] * 4 + [False] * 3
    assert all(torch.equal(x, dog) for x in seen[4:])


def test_conditions_joined_by_and_add_up(pipe) -> None:
    plain = pipe("a cat", **CALL).images
    assert far(pipe("a cat AND a dog:0", prompt_syntax="a1111", **CALL).images, plain) <= 1e-5
    assert far(pipe("a cat:0.5 AND a cat:0.5", prompt_syntax="a1111", **CALL).images, plain) <= 1e-5
    mixed = pipe("a cat:0.5 AND a dog:0.5", prompt_syntax="a1111", **CALL).images
    swapped = pipe("a dog:0.5 AND a cat:0.5", prompt_syntax="a1111", **CALL).images
    assert far(mixed, swapped) <= 1e-5 and far(mixed, plain) > 1e-4


def test_a_batch_may_mix_prompts_with_and_without_and(pipe) -> None:
    call = {**CALL, "prompt_syntax": "a1111", "seed": [3, 4]}
    many = pipe(["a cat", "a dog AND a cat:0.7"], **call).images
    alone = pipe(["a dog AND a cat:0.7"], **{**call, "seed": [4]}).images
    assert far(many[1], alone[0]) <= 1e-5
    assert far(many[0], pipe(["a cat"], **{**call, "seed": [3]}).images[0]) <= 1e-5


def test_and_needs_guidance(pipe) -> None:
    with pytest.raises(InputError, match="AND needs guidance"):
        pipe("a cat AND a dog", prompt_syntax="a1111", guidance_scale=1.0, num_inference_steps=1)
    with pytest.raises(InputError, match="negative prompt"):
        pipe("a cat", negative_prompt="a AND b", prompt_syntax="a1111", num_inference_steps=1)


def test_blends_and_joins_of_compel(pipe) -> None:
    cat, dog = (pipe.encode_prompt(f"a {word}")[0] for word in ("cat", "dog"))
    blend, _ = pipe.encode_prompt('("a cat", "a dog").blend(0.75, 0.25)', prompt_syntax="compel")
    assert torch.allclose(blend, 0.75 * cat + 0.25 * dog, atol=1e-6)
    joined, negative = pipe.encode_prompt('("a cat", "a dog").and()', prompt_syntax="compel")
    assert torch.equal(joined, torch.cat([cat, dog], dim=1)) and negative.shape == joined.shape


def test_other_tasks_read_prompts_too(pipe) -> None:
    change = langevin.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    change.set_progress_bar_config(disable=True)
    call = {**CALL, "image": tiny.picture(1), "strength": 0.5}
    plain = change("a cat", **call).images
    assert far(change("a (cat:1.5)", prompt_syntax="a1111", **call).images, plain) > 1e-5
    late = change("a [dog:cat:0.0]", prompt_syntax="a1111", **call).images
    assert np.array_equal(late, plain)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": "a (cat", "prompt_syntax": "compel"}, "character|position|closed"),
        ({"prompt": "a cat)", "prompt_syntax": "comfy"}, "character|position|opened"),
        ({"prompt": "a", "negative_prompt": "(b", "prompt_syntax": "comfy"}, "closed|position|character"),
        ({"prompt": "a", "prompt_syntax": "A1111"}, "did you mean 'a1111'"),
        ({"prompt": "a", "long_prompt": "chunks"}, "did you mean 'chunk'"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_bad_prompts(pipe, monkeypatch, call, words) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("work was begun before the prompts were read")

    monkeypatch.setattr(pipe.text_encoder, "forward", refuse)
    with pytest.raises(InputError, match=words):
        pipe(**call, num_inference_steps=1)


def test_a_changing_prompt_has_no_single_embedding(pipe) -> None:
    with pytest.raises(InputError, match="changes between steps"):
        pipe.encode_prompt("[cat:dog:0.5]", prompt_syntax="a1111")


def test_learned_words_are_written_out_for_packages(pipe, sd_folder) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(sd_folder / "tokenizer")
    tokenizer.add_tokens(["<dog>", "<dog>_1"])
    assert pipe.maybe_convert_prompt("a <dog>", tokenizer) == "a <dog> <dog>_1"
    assert pipe.maybe_convert_prompt(["a cat", "<dog>"], tokenizer) == ["a cat", "<dog> <dog>_1"]


@pytest.mark.parametrize("edit", ["none", "replace", "in place"])
def test_a_callback_that_changes_nothing_leaves_a_changing_prompt_alone(pipe, edit) -> None:
    handed = []

    def callback(inner, step, timestep, tensors):
        handed.append(tensors["prompt_embeds"].clone())
        if step == 0 and edit == "replace":
            tensors["prompt_embeds"] = tensors["prompt_embeds"] * 2
        if step == 0 and edit == "in place":
            tensors["prompt_embeds"].mul_(2)
        return tensors

    call = {**CALL, "prompt": "a [cat:dog:2]", "prompt_syntax": "a1111"}
    names = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    pictures = pipe(**call, **names).images
    assert np.array_equal(pictures, pipe(**call).images) == (edit == "none")
    cat, dog = (pipe.encode_prompt(f"a {word}")[0][0] for word in ("cat", "dog"))
    expected = [cat, cat, dog, dog] if edit == "none" else [cat, 2 * cat, 2 * cat, 2 * cat]
    assert all(torch.equal(rows[1], text) for rows, text in zip(handed, expected, strict=True))
