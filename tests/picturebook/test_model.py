"""The shipped picturebook: small, loadable, and it draws what it is asked for."""

from __future__ import annotations

import pytest
import torch

from langevin.picturebook import GUIDANCE_SCALE, model_folder
from langevin.picturebook.checker import check
from langevin.picturebook.scores import generate, prompts, wilson
from langevin.picturebook.world import COLOURS, KINDS


@pytest.fixture(scope="module")
def pipe():
    from langevin import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_folder_is_small():
    size = sum(file.stat().st_size for file in model_folder().rglob("*") if file.is_file())
    assert size <= 40 * 2**20


def test_the_weights_are_half_precision_safetensors():
    from safetensors import safe_open

    files = list(model_folder().rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"unet", "vae", "text_encoder", "clip"}
    for file in files:
        with safe_open(file, "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds == {"F16"}, file.parent.name


def test_the_text_encoder_has_the_names_that_every_version_of_transformers_reads():
    from safetensors import safe_open

    with safe_open(model_folder() / "text_encoder" / "model.safetensors", "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118


def test_pictures_show_what_was_asked(pipe):
    texts = prompts(8, "single") + prompts(8, "pair")
    pictures = generate(pipe, texts, steps=20, guidance_scale=GUIDANCE_SCALE, batch=16)
    verdicts = check(pictures, texts)
    settings, right = (sum(getattr(v, name) for v in verdicts) for name in ("background_right", "all_right"))
    assert settings >= 14, f"{settings} of {len(texts)} settings were right"
    # The shipped weights reach 13 here; guessing thing and colour reaches none.
    assert right >= 11, f"{right} of {len(texts)} prompts were fulfilled"


def test_pictures_depend_on_the_seed_not_on_the_batch(pipe):
    one = generate(pipe, ["a red house"] * 2, steps=4, guidance_scale=GUIDANCE_SCALE, batch=1, seed=3)
    both = generate(pipe, ["a red house"] * 2, steps=4, guidance_scale=GUIDANCE_SCALE, batch=2, seed=3)
    for alone, together in zip(one, both, strict=True):
        difference = torch.tensor(list(alone.tobytes())).float() - torch.tensor(list(together.tobytes())).float()
        assert difference.abs().max() <= 2


@torch.no_grad()
def test_the_clip_knows_kinds_and_colours():
    import numpy as np
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from langevin.picturebook.world import Scene, Thing, render

    folder = model_folder() / "clip"
    model, words = CLIPModel.from_pretrained(folder).float(), CLIPTokenizer.from_pretrained(folder)
    asked = [
        ("red", "house"),
        ("blue", "fish"),
        ("yellow", "sun"),
        ("green", "tree"),
        ("pink", "heart"),
        ("black", "cat"),
    ]
    assert all(colour in COLOURS and kind in KINDS for colour, kind in asked)
    pictures = [
        render(Scene((Thing(kind, colour, "big", 1, 0.5, 0.5, 0.5),), None, "plain", "flat")) for colour, kind in asked
    ]
    pixels = CLIPImageProcessor.from_pretrained(folder)(list(np.stack(pictures)), return_tensors="pt")
    texts = words([f"a {colour} {kind}" for colour, kind in asked], padding="max_length", return_tensors="pt")
    logits = model(input_ids=texts.input_ids, pixel_values=pixels.pixel_values).logits_per_image
    assert (logits.argmax(1) == torch.arange(len(asked))).sum() >= 5


def test_intervals_contain_the_share_and_shrink():
    low, high = wilson(80, 100)
    assert low < 80 < high
    assert wilson(800, 1000)[0] > low
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-9) and wilson(10, 10)[1] == pytest.approx(100)
