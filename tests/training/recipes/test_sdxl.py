"""Recipes for Stable Diffusion XL on a tiny pipeline: what they write, who loads it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.training.recipes import RECIPES, dreambooth, sdxl, text_to_image
from langevin.training.settings import parse
from langevin.training.trainables import Whole
from tests.pipelines import tiny_xl
from tests.training.recipes.places import cut, digest, model, pictures, trained

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return the folders of a tiny pipeline, of pictures with captions, and of a tiny Stable Diffusion."""
    base = tmp_path_factory.mktemp("base")
    tiny_xl.base(langevin, base).save_pretrained(base / "xl")
    return base / "xl", pictures(base / "pictures", 3), model(base / "sd")


def run(name: str, places, folder: Path, *flags: str) -> Path:
    words = [f"--pretrained_model_name_or_path={places[0]}", f"--output_dir={folder}"]
    data = "instance" if name.startswith("dreambooth") else "train"
    words += [f"--{data}_data_dir={places[1]}", *(["--instance_prompt=a sks cat"] if data == "instance" else [])]
    return trained(RECIPES[name].loaded(), words, *flags)


def drawn(pipe) -> torch.Tensor:
    """Return a picture of few steps from the same noise for either library."""
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return torch.as_tensor(pipe("a sks cat", latents=latents, num_inference_steps=2, output_type="np").images)


def test_a_lora_in_all_networks_is_read_by_both_libraries(places, tmp_path) -> None:
    flags = ("--train_text_encoder", "--learning_rate=0.05", "--text_encoder_lr=0.05", "--rank=2", "--lora_alpha=4")
    folder = run("dreambooth_lora_sdxl", places, tmp_path, *flags, "--gradient_checkpointing")
    tensors = load_file(folder / FILE)
    assert {name.split(".")[0] for name in tensors} == {"unet", "text_encoder", "text_encoder_2"}
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())
    own = langevin.StableDiffusionXLPipeline.from_pretrained(places[0])
    peer = diffusers.StableDiffusionXLPipeline.from_pretrained(places[0])
    before = drawn(own)
    own.load_lora_weights(folder)
    peer.load_lora_weights(folder)
    after = drawn(own)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(drawn(peer), after, atol=1e-4, rtol=0)


def resumed(name: str, places, folder: Path, *flags: str) -> Path:
    """Return the folder of a run of four steps that went on from its second one, as if nothing had stopped it."""
    flags = (*flags, "--checkpointing_steps=2", "--random_flip", "--noise_offset=0.05")
    expected = digest(run(name, places, folder, *flags))
    cut(folder)
    assert digest(run(name, places, folder, *flags, "--resume_from_checkpoint=latest")) == expected
    return folder


def test_a_lora_goes_on_as_if_nothing_had_stopped_it(places, tmp_path) -> None:
    resumed("text_to_image_lora_sdxl", places, tmp_path, "--train_text_encoder", "--no_proof")


def test_a_whole_network_goes_on_is_a_pipeline_and_its_checkpoints_load(places, tmp_path) -> None:
    tiny_xl.vae(langevin, scaling_factor=0.5).save_pretrained(tmp_path / "vae")
    flags = (f"--pretrained_vae_model_name_or_path={tmp_path / 'vae'}", "--proportion_empty_prompts=0.3")
    folder = resumed("text_to_image_sdxl", places, tmp_path / "out", *flags, "--snr_gamma=5", "--no_proof")
    found = langevin.DiffusionPipeline.from_pretrained(folder)
    assert type(found) is langevin.StableDiffusionXLPipeline and found.vae.config.scaling_factor == 0.5
    held = langevin.UNet2DConditionModel.from_pretrained(folder / "checkpoint-4", subfolder="unet")
    begun = langevin.UNet2DConditionModel.from_pretrained(places[0], subfolder="unet")
    name = "conv_in.weight"
    assert torch.equal(held.state_dict()[name], found.unet.state_dict()[name])
    assert not torch.equal(held.state_dict()[name], begun.state_dict()[name])


def test_half_precision_beside_pictures_of_the_class(places, tmp_path) -> None:
    flags = ("--mixed_precision=bf16", "--train_text_encoder", "--validation_prompt=a cat", "--num_validation_images=1")
    prior = ("--with_prior_preservation", "--class_prompt=a cat", "--num_class_images=2", "--max_train_steps=2")
    flags = (*flags, *prior, f"--class_data_dir={tmp_path / 'class'}")
    folder = run("dreambooth_lora_sdxl", places, tmp_path / "out", *flags)
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < 5 for loss in losses)
    assert len(list((tmp_path / "class").glob("*.png"))) == 2 and (folder / FILE).is_file()
    assert (folder / "previews" / "step-2.png").is_file()


def test_flags_of_the_crop_and_of_the_text_encoders_reach_the_task(places) -> None:
    words = ["--pretrained_model_name_or_path=x", "--crops_coords_top_left_w=7", "--scale_lr", "--train_batch_size=2"]
    settings = parse(sdxl.DreamBoothSettings, [*words, "--text_encoder_lr=0.5"], name="train")
    pipe = langevin.StableDiffusionXLPipeline.from_pretrained(places[0])
    task = settings.task(pipe, [Whole("text_encoder", pipe.text_encoder), Whole("unet", pipe.unet)])
    assert task.corner == (None, 7)
    assert [(group["lr"], group.get("weight_decay")) for group in task.groups()] == [(1.0, 1e-3), (2e-4, None)]


@pytest.mark.parametrize(
    ("name", "flags", "error", "words"),
    [
        ("text_to_image_sdxl", ("--proportion_empty_prompts=2",), InputError, "proportion_empty_prompts is 2.0"),
        ("text_to_image_sdxl", ("--caption_dropout_prob=0.1",), ConfigError, "no option|caption_dropout_prob"),
        ("text_to_image_lora_sdxl", ("--crops_coords_top_left_h=-1",), InputError, "at least 0"),
        ("text_to_image_lora_sdxl", ("--rank=0",), InputError, "rank is 0"),
        ("dreambooth_lora_sdxl", ("--text_encoder_lr=-1",), InputError, "text_encoder_lr is -1"),
        ("dreambooth_lora_sdxl", ("--with_prior_preservation",), ConfigError, "class_data_dir is missing"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    name, flags, error, words, places, tmp_path, monkeypatch
) -> None:
    for module in (dreambooth, text_to_image):
        monkeypatch.setattr(module, "pipeline", lambda settings: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        run(name, places, tmp_path, *flags)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_sdxl")])
def test_each_family_is_sent_to_its_recipe(name, places, tmp_path) -> None:
    large, shown, small = places
    plain = name.removesuffix("_sdxl")
    with pytest.raises(ConfigError, match=rf"it has no text_encoder_2; use the recipe {plain}\."):
        run(name, (small, shown), tmp_path)
    with pytest.raises(ConfigError, match=rf"it has two text encoders; use the recipe {name}\."):
        run(plain, (large, shown), tmp_path)


def test_recipes_without_a_twin_name_those_that_there_are(places, tmp_path) -> None:
    words = [
        f"--pretrained_model_name_or_path={places[0]}",
        f"--output_dir={tmp_path}",
        f"--train_data_dir={places[1]}",
    ]
    words += ["--placeholder_token=<x>", "--initializer_token=cat"]
    with pytest.raises(ConfigError, match="recipes for Stable Diffusion XL: dreambooth_lora_sdxl, text_to_image_lora"):
        trained(RECIPES["textual_inversion"].loaded(), words)


def test_a_refiner_is_not_trained(places, tmp_path) -> None:
    tiny_xl.refiner(langevin, tmp_path).save_pretrained(tmp_path / "refiner")
    with pytest.raises(ConfigError, match="it has no text_encoder\\."):
        run("text_to_image_sdxl", (tmp_path / "refiner", places[1]), tmp_path / "out")
