"""Text-to-image recipes on a tiny pipeline: what they write, resume, and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems
from langevin.training.recipes.text_to_image import FullSettings, LoraSettings, train_full, train_lora
from tests.training.recipes.places import FLAGS, cut, digest, model, pictures, trained

LORA = (LoraSettings, train_lora)
FULL = (FullSettings, train_full)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of five pictures with captions."""
    return model(tmp_path_factory.mktemp("base")), pictures(tmp_path_factory.mktemp("pictures"))


def run(recipe, places, folder: Path, *flags: str, **options) -> Path:
    base, shown = places
    words = [f"--pretrained_model_name_or_path={base}", f"--train_data_dir={shown}", f"--output_dir={folder}"]
    return trained(recipe, words, *flags, **options)


@pytest.mark.parametrize(("recipe", "flags"), [(LORA, ()), (FULL, ("--use_ema",))])
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(recipe, flags, places, tmp_path) -> None:
    flags = (*flags, "--checkpointing_steps=2", "--random_flip", "--lr_scheduler=cosine")
    whole = run(recipe, places, tmp_path / "whole", *flags)
    run(recipe, places, tmp_path / "cut", *flags)
    cut(tmp_path / "cut")
    again = run(recipe, places, tmp_path / "cut", *flags, "--resume_from_checkpoint=latest")
    assert digest(again) == digest(whole)
    assert json.loads((again / "settings.json").read_text())["seed"] == 0


def test_a_seed_that_was_drawn_decides_everything(places, tmp_path) -> None:
    flags, unseeded = ("--checkpointing_steps=2",), {"common": FLAGS[:-1]}
    assert FLAGS[-1] == "--seed=0"
    whole = run(LORA, places, tmp_path / "whole", *flags, **unseeded)
    seed = json.loads((whole / "settings.json").read_text())["seed"]
    said = run(LORA, places, tmp_path / "said", *flags, f"--seed={seed}", **unseeded)
    assert digest(said) == digest(whole) != digest(run(LORA, places, tmp_path / "other", *flags))
    cut(whole)
    assert digest(run(LORA, places, whole, *flags, "--resume_from_checkpoint=latest", **unseeded)) == digest(said)
    with pytest.raises(ConfigError, match=f"has the seed {seed}, not"):
        run(LORA, places, whole, *flags, f"--seed={seed + 1}", "--resume_from_checkpoint=latest", **unseeded)


def test_a_lora_loads_and_changes_the_picture(places, tmp_path) -> None:
    folder = run(LORA, places, tmp_path, "--learning_rate=0.05", "--rank=2", "--lora_alpha=4")
    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    before = pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images
    pipe.load_lora_weights(folder)
    after = pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images
    assert (after - before).abs().max() > 1e-3
    pipe.unload_lora_weights()
    assert torch.equal(pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images, before)
    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    assert {min(tensor.shape) for tensor in tensors.values() if tensor.dim() == 2} == {2}


def test_the_layers_of_a_lora_are_chosen_and_its_average_is_the_result(places, tmp_path) -> None:
    flags = ("--lora_layers=to_k, conv1", "--use_ema", "--ema_decay=0.5", "--checkpointing_steps=4")
    folder = run(LORA, places, tmp_path, "--learning_rate=0.05", *flags)
    present, last = (
        load_file(place / "pytorch_lora_weights.safetensors") for place in (folder, folder / "checkpoint-4")
    )
    layers = {name.split(".lora")[0].rsplit(".", 1)[-1] for name in present}
    assert layers == {"to_k", "conv1"} and {tensor.dim() for tensor in present.values()} == {2, 4}
    average = load_file(folder / "checkpoint-4" / "average.safetensors")
    kept = {tuple(tensor.flatten().tolist()) for name, tensor in average.items() if name != "updates"}
    assert {tuple(tensor.flatten().tolist()) for tensor in present.values()} == kept
    assert not any(torch.equal(present[name], last[name]) for name in present if "up" in name)
    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    before = pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images
    pipe.load_lora_weights(folder)
    assert (pipe("a cat", num_inference_steps=2, seed=0, output_type="pt").images - before).abs().max() > 1e-3


def test_a_whole_network_is_written_as_a_pipeline_and_its_checkpoints_load(places, tmp_path) -> None:
    folder = run(FULL, places, tmp_path, "--checkpointing_steps=2", "--use_ema", "--ema_decay=0.5")
    found = langevin.StableDiffusionPipeline.from_pretrained(folder)
    held = langevin.UNet2DConditionModel.from_pretrained(folder / "checkpoint-4" / "unet")
    base = langevin.UNet2DConditionModel.from_pretrained(places[0], subfolder="unet")
    name = "conv_in.weight"
    present, kept, begun = (net.state_dict()[name] for net in (found.unet, held, base))
    average = load_file(folder / "checkpoint-4" / "average.safetensors")
    first = next(k for k, key in enumerate(dict(held.named_parameters())) if key == name)
    assert torch.equal(present, average[f"values.{first}"])
    assert not torch.equal(present, kept) and not torch.equal(kept, begun)
    base = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    before, after = base.text_encoder.state_dict(), found.text_encoder.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (("--learning_rat=1",), ConfigError, "did you mean 'learning_rate'"),
        (("stray",), ConfigError, "does not know what to do with 'stray'"),
        (("--lr_scheduler=cosin",), InputError, "did you mean 'cosine'"),
        (("--train_batch_size=0",), InputError, "train_batch_size is 0"),
        (("--dataset_name=some/set",), ConfigError, "either dataset_name or train_data_dir"),
        (("--caption_column=txt",), Problems, "no column 'txt'; did you mean 'text'"),
        (("--image_interpolation_mode=lancos",), InputError, "did you mean 'lanczos'"),
        (("--lr_scheduler=linear", "--lr_warmup_steps=9"), InputError, "only 4 steps"),
        (("--snr_gamma=-1",), InputError, "gamma"),
        (("--caption_dropout_prob=5",), InputError, "from 0 to 1"),
        (("--rank=0",), InputError, "rank is 0"),
        (("--lora_layers=to_q,",), ConfigError, "names between commas"),
        (("--lora_layers=to_q,conv3",), ConfigError, "No layer is called 'conv3'; did you mean 'conv"),
        (("--ema_decay=2", "--use_ema"), InputError, "lowest <= highest < 1"),
        (("--optimizer=adamw2",), InputError, "did you mean 'adamw'"),
        (("--resume_from_checkpoint=checkpoint-3",), InputError, "no checkpoint 'checkpoint-3'"),
    ],
)
def test_what_is_wrong_is_said(flags, error, words, places, tmp_path) -> None:
    with pytest.raises(error, match=words):
        run(LORA, places, tmp_path, *flags)


def test_settings_are_checked_before_anything_is_loaded(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("langevin.training.recipes.text_to_image.pipeline", lambda settings: pytest.fail("loaded"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Problems, match="holds no picture"):
        run(LORA, (places[0], tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(InputError, match="resolution is 0"):
        run(LORA, places, tmp_path / "out", "--resolution=0")
    with pytest.raises(ConfigError, match="pretrained_model_name_or_path is missing"):
        train_lora(LoraSettings(train_data_dir=str(places[1])))
