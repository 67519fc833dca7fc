"""Bad calls are refused before any work, with the cause, the cure and the nearest valid option."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError, NonFiniteError
from langevin.pipelines.glossary import describe, documented
from tests.pipelines import tiny

EMBEDS = torch.zeros(1, 77, tiny.WIDTH)


@pytest.fixture
def idle(pipe, monkeypatch):
    """A pipeline whose components must not be called."""

    def refuse(*args, **kwargs):
        raise AssertionError("work was begun before the arguments were checked")

    for name in ("unet", "text_encoder", "vae"):
        monkeypatch.setattr(getattr(pipe, name), "forward", refuse)
    return pipe


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "Neither `prompt` nor `prompt_embeds`"),
        ({"prompt": "a", "prompt_embeds": EMBEDS}, "Both `prompt` and `prompt_embeds`"),
        ({"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": EMBEDS}, "Both `negative_prompt` and"),
        ({"prompt": 3}, "`prompt` is a int"),
        ({"prompt": []}, "non-empty list"),
        ({"prompt": ["a", None]}, "a list with"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "1 texts for 2 prompts"),
        ({"prompt_embeds": torch.zeros(77, 32)}, r"\(prompts, tokens, width\)"),
        ({"prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS[:, :5]}, "not \\(1, 77, 32\\)"),
        ({"prompt": "a", "height": 15}, "`height` is 15, not a multiple of 2; nearest: 14 and 16"),
        ({"prompt": "a", "width": 0}, "`width` is 0"),
        ({"prompt": "a", "width": "16"}, "whole number"),
        ({"prompt": "a", "num_inference_steps": 0}, "`num_inference_steps` is 0"),
        ({"prompt": "a", "num_inference_steps": -3}, "at least 1"),
        ({"prompt": "a", "num_inference_steps": 2.0}, "whole number"),
        ({"prompt": "a", "num_inference_steps": True}, "whole number"),
        ({"prompt": "a", "timesteps": [5], "sigmas": [1.0]}, "Both `timesteps` and `sigmas`"),
        ({"prompt": "a", "timesteps": []}, "`timesteps` is empty"),
        ({"prompt": "a", "guidance_scale": "7"}, "`guidance_scale` is '7'"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "finite"),
        ({"prompt": "a", "guidance_rescale": 2.0}, "between 0.0 and 1.0"),
        ({"prompt": "a", "eta": -1.0}, "`eta`"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"prompt": "a", "output_type": "pill"}, "did you mean 'pil'"),
        ({"prompt": "a", "latents": torch.zeros(1, 4, 7, 8), "height": 16, "width": 16}, r"needs \(1, 4, 8, 8\)"),
        ({"prompt": "a", "latents": torch.zeros(1, 3, 8, 8)}, r"needs \(1, 4, 8, 8\)"),
        ({"prompt": "a", "latents": torch.full((1, 4, 8, 8), float("nan"))}, "NaN"),
        ({"prompt": "a", "latents": [1.0]}, "must be a tensor"),
        ({"prompt": "a", "generator": 0}, "seed=0"),
        ({"prompt": "a", "seed": [1, 2]}, "2 seeds were given for 1"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["latent"], "callback_on_step_end": print}, "'latents'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_calls(idle, call, words) -> None:
    with pytest.raises(InputError, match=words):
        idle(**call)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"num_inference_step": 3}, "did you mean 'num_inference_steps'"),
        ({"ip_adapter_image": object()}, "IP-Adapter"),
        ({"ip_adapter_image_embeds": [EMBEDS]}, "IP-Adapter"),
    ],
)
def test_unknown_and_unready_options(idle, call, words) -> None:
    with pytest.raises(ConfigError, match=words):
        idle("a", **call)


def test_too_many_layers_skipped(pipe) -> None:
    with pytest.raises(InputError, match="3 layers"):
        pipe("a", clip_skip=3, num_inference_steps=1)


@pytest.mark.parametrize("name", ["unet", "scheduler", "tokenizer", "text_encoder", "vae"])
def test_a_missing_component_is_named(pipe, name) -> None:
    setattr(pipe, name, None)
    with pytest.raises(ConfigError, match=name):
        pipe("a", num_inference_steps=1)


@pytest.mark.parametrize(
    ("module", "weight", "step"), [("unet", "conv_out.weight", 0), ("vae", "decoder.conv_out.weight", None)]
)
def test_a_nan_names_its_module(pipe, module, weight, step) -> None:
    found = dict(getattr(pipe, module).named_parameters())[weight]
    kept = found.data.clone()
    try:
        found.data.view(-1)[0] = float("nan")
        with pytest.raises(NonFiniteError, match=module) as error:
            pipe("a", num_inference_steps=3)
    finally:
        found.data.copy_(kept)
    assert (error.value.module, error.value.step) == (module, step)


def test_a_nan_in_the_text_encoder_is_named(pipe) -> None:
    weight = pipe.text_encoder.final_layer_norm.weight
    kept = weight.data.clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(NonFiniteError, match="text encoder") as error:
            pipe("a", num_inference_steps=3)
    finally:
        weight.data.copy_(kept)
    assert error.value.module == "text_encoder"


def test_height_and_width_are_independent(pipe) -> None:
    assert pipe("a", height=24, num_inference_steps=1).images[0].size == (16, 24)


def test_numbers_of_numpy_are_numbers(pipe) -> None:
    plain = pipe("a", num_inference_steps=2, seed=3, guidance_scale=2.0, output_type="np").images
    call = {"num_inference_steps": np.int64(2), "seed": np.int64(3), "guidance_scale": np.float64(2.0)}
    assert np.array_equal(plain, pipe("a", **call, height=np.int32(16), output_type="np").images)


def test_the_size_follows_given_latents(pipe) -> None:
    images = pipe("a", latents=torch.zeros(1, 4, 4, 6), num_inference_steps=1).images
    assert images[0].size == (12, 8)


def test_a_negative_prompt_without_guidance_is_reported(pipe, caplog_ours) -> None:
    pipe("a", negative_prompt="b", guidance_scale=1.0, num_inference_steps=1)
    assert "no effect" in caplog_ours.text
    caplog_ours.clear()
    pipe("a", negative_prompt="b", num_inference_steps=1)
    assert "no effect" not in caplog_ours.text


def test_dropped_words_are_named(pipe, caplog_ours) -> None:
    pipe.encode_prompt("x " * 75 + "cat dog", long_prompt="truncate")
    assert "2 tokens too many" in caplog_ours.text and "cat dog" in caplog_ours.text
    caplog_ours.clear()
    pipe.encode_prompt("x " * 75, long_prompt="truncate")
    pipe.encode_prompt("x " * 175)
    assert caplog_ours.text == ""


def test_a_pipeline_without_an_autoencoder_gives_latents(pipe) -> None:
    pipe.vae = None
    latents = pipe("a", output_type="latent", num_inference_steps=1, height=64, width=64).images
    assert latents.shape == (1, 4, 8, 8)


def test_embeddings_need_no_text_encoder(pipe) -> None:
    embeds, negative = pipe.encode_prompt("a cat")
    plain = pipe("a cat", num_inference_steps=2, seed=0, output_type="np").images
    pipe.text_encoder = pipe.tokenizer = None
    call = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert np.array_equal(plain, pipe(**call, num_inference_steps=2, seed=0, output_type="np").images)
    with pytest.raises(ConfigError, match="negative_prompt_embeds"):
        pipe(prompt_embeds=embeds, num_inference_steps=2)


def test_eta_without_effect_is_reported(pipe, caplog_ours) -> None:
    pipe.scheduler = tiny.scheduler(langevin, "EulerDiscreteScheduler")
    pipe("a", eta=0.5, num_inference_steps=1)
    assert "eta=0.5 has no effect" in caplog_ours.text


def test_an_unexplained_parameter_is_rejected() -> None:
    def call(self, prompt, mood):
        """Draw."""

    with pytest.raises(ConfigError, match="mood"):
        documented(call)
    assert "prompt: What the picture" in describe(lambda self, prompt: None)
