"""Unconditional training of a tiny network: what it writes, resume, objectives, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems
from langevin.training.recipes.unconditional import UnconditionalSettings, train
from langevin.training.streams import Draw, Streams
from tests.pipelines import tiny
from tests.training.recipes.places import cut, digest, pictures, trained

RECIPE = (UnconditionalSettings, train)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny configuration and of five pictures without captions."""
    base, shown = tmp_path_factory.mktemp("base"), pictures(tmp_path_factory.mktemp("pictures"))
    langevin.UNet2DModel(**tiny.PIXELS).save_config(base)
    for text in shown.glob("*.txt"):
        text.unlink()
    return base, shown


def settings_of(places, folder: Path) -> list[str]:
    base, shown = places
    fast = ["--ddpm_num_steps=20", "--ddpm_num_inference_steps=2", "--eval_batch_size=2"]
    return [f"--model_config_name_or_path={base}", f"--train_data_dir={shown}", f"--output_dir={folder}", *fast]


def run(places, folder: Path, *flags: str) -> Path:
    return trained(RECIPE, settings_of(places, folder), *flags)


@pytest.mark.parametrize("flags", [(), ("--use_ema", "--lr_scheduler=linear", "--center_crop")])
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(flags, places, tmp_path) -> None:
    flags = (*flags, "--checkpointing_steps=2", "--random_flip")
    whole = run(places, tmp_path / "whole", *flags)
    run(places, tmp_path / "cut", *flags)
    cut(tmp_path / "cut")
    torch.manual_seed(99)
    again = run(places, tmp_path / "cut", *flags, "--resume_from_checkpoint=latest")
    assert digest(again) == digest(whole)


def test_the_result_is_a_pipeline_and_checkpoints_load(places, tmp_path) -> None:
    flags = ("--checkpointing_steps=2", "--use_ema", "--ema_inv_gamma=2", "--ema_power=0.5", "--ema_max_decay=0.6")
    folder = run(places, tmp_path, *flags, "--learning_rate=1e-3", "--gradient_checkpointing")
    pipe = langevin.DDPMPipeline.from_pretrained(folder)
    assert pipe.unet.config.sample_size == 16 and pipe.scheduler.config.num_train_timesteps == 20
    assert pipe(batch_size=2, num_inference_steps=2, seed=0).images[1].size == (16, 16)
    found = [langevin.UNet2DModel.from_pretrained(folder / f"checkpoint-{k}" / "unet") for k in (2, 4)]
    name = "conv_in.weight"
    early, late, kept = (net.state_dict()[name] for net in (*found, pipe.unet))
    average = load_file(folder / "checkpoint-4" / "average.safetensors")
    first = next(k for k, key in enumerate(dict(pipe.unet.named_parameters())) if key == name)
    assert torch.equal(kept, average[f"values.{first}"])
    assert not torch.equal(kept, late) and not torch.equal(late, early)


def test_the_options_of_the_average_are_heard() -> None:
    given = UnconditionalSettings(use_ema=True, ema_inv_gamma=2.0, ema_power=0.5, ema_max_decay=0.7)
    decay = given.average()
    assert decay is not None
    assert [round(decay.at(k), 6) for k in (0, 6, 1000)] == [0, 0.5, 0.7]
    assert UnconditionalSettings().average() is None


def test_epochs_count_looks_and_saves(places, tmp_path, monkeypatch) -> None:
    saved: list[int] = []
    write = langevin.DDPMPipeline.save_pretrained

    def save(pipe, folder) -> None:
        saved.append(len(list(Path(tmp_path).glob("previews/*"))))
        write(pipe, folder)

    monkeypatch.setattr(langevin.DDPMPipeline, "save_pretrained", save)
    given = {
        "model_config_name_or_path": str(places[0]),
        "train_data_dir": str(places[1]),
        "output_dir": str(tmp_path),
        "resolution": 16,
        "train_batch_size": 2,
        "num_epochs": 4,
        "save_images_epochs": 1,
        "save_model_epochs": 2,
        "eval_batch_size": 3,
        "ddpm_num_inference_steps": 2,
        "lr_warmup_steps": 0,
        "logger": "none",
    }
    train(UnconditionalSettings(**given))
    sheets = sorted((tmp_path / "previews").iterdir(), key=lambda path: int(path.stem[5:]))
    assert [sheet.name for sheet in sheets] == [f"step-{k}.png" for k in (3, 6, 9, 10)]
    assert Image.open(sheets[0]).size == (3 * 16, 16)
    assert saved == [1, 4, 4]


def test_a_sample_costs_what_the_same_mistake_costs_in_the_noise() -> None:
    x0, draw = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), Draw(Streams(0), range(3))
    denoisers = [
        given.denoiser(given.scheduler())
        for given in (UnconditionalSettings(prediction_type=kind) for kind in ("epsilon", "sample"))
    ]
    levels = denoisers[0].noising.at((draw.uniform("level") * 1000).long())
    alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in (levels.alpha, levels.sigma))
    mistake = torch.full_like(x0, 0.25)

    def network(x, t, return_dict):
        return ((mistake if kind == "epsilon" else -mistake * sigma / alpha) + target,)

    losses = []
    for kind, denoiser in zip(("epsilon", "sample"), denoisers, strict=True):
        target = x0 if kind == "sample" else draw.normal("noise", (3, 8, 8))
        losses.append(denoiser(network, x0, draw).rows)
    torch.testing.assert_close(losses[0], torch.full((3,), 0.0625), rtol=0, atol=1e-6)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)


def test_a_network_of_no_configuration_is_that_of_the_documentation() -> None:
    found = UnconditionalSettings(resolution=128).config()
    assert found["block_out_channels"] == (128, 128, 256, 256, 512, 512) and found["sample_size"] == 128
    assert (
        found["down_block_types"].index("AttnDownBlock2D") == 4 and found["up_block_types"].index("AttnUpBlock2D") == 1
    )
    langevin.UNet2DModel.from_config({**found, "block_out_channels": (8,) * 6, "norm_num_groups": 4})


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (("--num_train_epochs=3",), ConfigError, "num_train_epochs"),
        (("--report_to=none",), ConfigError, "report_to"),
        (("--logger=tensorbord",), InputError, "logger.*did you mean 'tensorboard'"),
        (("--num_epochs=0",), InputError, "num_epochs is 0"),
        (("--prediction_type=epsilom",), InputError, "did you mean 'epsilon'"),
        (("--ddpm_beta_schedule=linea",), InputError, "did you mean 'linear'"),
        (("--ddpm_num_inference_steps=21",), InputError, "at most ddpm_num_steps, 20"),
        (("--use_ema", "--ema_max_decay=1"), InputError, "lowest <= highest"),
        (("--resolution=15",), ConfigError, "multiple of 2"),
        (("--image_column=picture",), Problems, "no column 'picture'"),
    ],
)
def test_what_is_wrong_is_said_before_a_network_is_made(flags, error, words, places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(UnconditionalSettings, "network", lambda self: pytest.fail("made"))
    with pytest.raises(error, match=words):
        run(places, tmp_path, *flags)


def test_a_network_for_other_pictures_is_refused(places, tmp_path) -> None:
    langevin.UNet2DModel(**{**tiny.PIXELS, "in_channels": 1}).save_config(tmp_path)
    with pytest.raises(ConfigError, match="in_channels=1; pictures have 3"):
        run(places, tmp_path, f"--model_config_name_or_path={tmp_path}")
