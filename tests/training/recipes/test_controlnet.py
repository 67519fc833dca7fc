"""ControlNets from the recipe on a tiny pipeline: what they begin as, write, resume, and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems
from langevin.training.recipes import controlnet
from langevin.training.recipes.controlnet import ControlSettings, train
from langevin.training.streams import Draw, Streams
from tests.pipelines import tiny
from tests.training.recipes.places import cut, digest, model, own_precision, trained


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of pictures to follow, with captions."""
    base, shown = model(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("pictures")
    lines = []
    for k in range(5):
        tiny.picture(k, (20, 24)).save(shown / f"{k}.png")
        tiny.picture(k + 50, (20, 24)).save(shown / f"{k}-edges.png")
        lines.append({"file_name": f"{k}.png", "conditioning_image_file_name": f"{k}-edges.png", "text": f"a cat {k}"})
    (shown / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return base, shown


def run(places, folder: Path, *flags: str) -> Path:
    words = [f"--pretrained_model_name_or_path={places[0]}", f"--train_data_dir={places[1]}", f"--output_dir={folder}"]
    return trained((ControlSettings, train), words, *flags)


def drawn(places, net: Path, seen: Image.Image) -> torch.Tensor:
    network = langevin.ControlNetModel.from_pretrained(net)
    pipe = langevin.StableDiffusionControlNetPipeline.from_pretrained(places[0], controlnet=network)
    return pipe("a cat", image=seen, num_inference_steps=2, seed=0, output_type="pt").images


def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(places, tmp_path) -> None:
    flags = ("--checkpointing_steps=2", "--random_flip", "--lr_scheduler=cosine", "--proportion_empty_prompts=0.5")
    whole = run(places, tmp_path / "whole", *flags)
    run(places, tmp_path / "cut", *flags)
    cut(tmp_path / "cut")
    torch.manual_seed(99)
    again = run(places, tmp_path / "cut", *flags, "--resume_from_checkpoint=latest")
    assert digest(again) == digest(whole)


def test_the_network_loads_and_follows_pictures(places, tmp_path) -> None:
    folder = run(places, tmp_path, "--learning_rate=0.05", "--checkpointing_steps=2", "--gradient_checkpointing")
    assert (folder / "config.json").is_file() and (folder / "diffusion_pytorch_model.safetensors").is_file()
    one, other = (drawn(places, folder, tiny.picture(k)) for k in (70, 71))
    assert (one - other).abs().max() > 1e-3
    held = langevin.ControlNetModel.from_pretrained(folder / "checkpoint-4" / "controlnet")
    result = langevin.ControlNetModel.from_pretrained(folder)
    assert all(torch.equal(tensor, result.state_dict()[name]) for name, tensor in held.state_dict().items())


def test_it_begins_as_the_first_half_of_the_unet_and_goes_on_from_a_network(places, tmp_path) -> None:
    still = run(places, tmp_path / "still", "--learning_rate=0")
    one, other = (drawn(places, still, tiny.picture(k)) for k in (70, 71))
    assert torch.equal(one, other)
    net = langevin.ControlNetModel.from_pretrained(still)
    unet = langevin.UNet2DConditionModel.from_pretrained(places[0], subfolder="unet")
    assert torch.equal(net.state_dict()["conv_in.weight"], unet.state_dict()["conv_in.weight"])
    moved = run(places, tmp_path / "moved", "--learning_rate=1e-2")
    again = run(places, tmp_path / "again", "--learning_rate=0", f"--controlnet_model_name_or_path={moved}")
    states = [langevin.ControlNetModel.from_pretrained(folder).state_dict() for folder in (still, moved, again)]
    name = "controlnet_mid_block.weight"
    assert torch.equal(states[1][name], states[2][name]) and not torch.equal(states[0][name], states[1][name])


def test_the_loss_is_that_of_the_two_networks_and_the_model_stays(places, tmp_path, monkeypatch) -> None:
    seen: dict = {}
    fit = controlnet.Trainer.fit

    def keep(self) -> None:
        seen["before"] = {name: value.clone() for name, value in self.task.pipe.unet.state_dict().items()}
        fit(self)
        seen["run"] = self

    monkeypatch.setattr(controlnet.Trainer, "fit", keep)
    run(places, tmp_path, "--max_train_steps=1", "--learning_rate=0", "--center_crop")
    trainer = seen["run"]
    pipe, net, streams = trainer.task.pipe, trainer.bare["controlnet"], Streams(0)
    assert all(torch.equal(value, seen["before"][name]) for name, value in pipe.unet.state_dict().items())
    torch.nn.init.normal_(net.controlnet_mid_block.weight)
    rows, positions = [], range(2)
    examples = [trainer.data.example(trainer.order.example(p), streams.at(p)) for p in positions]
    assert all(one["control"].min() >= 0 and one["control"].max() <= 1 for one in examples)
    for position, one in zip(positions, examples, strict=True):
        spread = pipe.vae.encode(one["pixels"][None]).latent_dist
        draw = {what: torch.randn(4, 8, 8, generator=streams.stream(what, position)) for what in ("latent", "noise")}
        x0 = (spread.mean + spread.std * draw["latent"]) * pipe.vae.config.scaling_factor
        chance = torch.rand((), generator=streams.stream("level", position), dtype=torch.float64)
        t = (chance * 1000).long()
        cumulated = pipe.scheduler.alphas_cumprod[t]
        x = cumulated.sqrt() * x0 + (1 - cumulated).sqrt() * draw["noise"]
        states = pipe.text_encoder(one["ids"][None])[0]
        down, mid = net(x, t, states, one["control"][None], return_dict=False)
        said = pipe.unet(x, t, states, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        rows.append((said - draw["noise"]).square().mean())
    found = trainer.task.losses(trainer.data.collate(examples), Draw(streams, positions)).rows
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-5)


def test_pictures_are_followed_on_the_way(places, tmp_path) -> None:
    shown = [tmp_path / "one.png", tmp_path / "two.png"]
    for k, file in enumerate(shown):
        tiny.picture(k, (40, 20)).save(file)
    looks = ["--validation_image", *map(str, shown), "--num_validation_images=2", "--validation_steps=2"]
    with own_precision():
        run(places, tmp_path / "pairs", *looks, "--validation_prompt", "a cat", "a dog", "--mixed_precision=bf16")
    sheets = sorted((tmp_path / "pairs" / "previews").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-2.png", "step-4.png"]
    assert Image.open(sheets[0]).size == (3 * 16, 2 * 16)
    first = Image.open(sheets[0]).crop((0, 0, 16, 16))
    assert first.tobytes() == ControlSettings(resolution=16).shown(str(shown[0])).tobytes()
    both = ControlSettings(resolution=16, validation_image=[str(shown[0])], validation_prompt=["a", "b"]).rows()
    assert [row["prompt"] for row in both] == ["a", "b"] and both[0]["image"] == both[1]["image"]
    both = ControlSettings(resolution=16, validation_image=[*map(str, shown)], validation_prompt=["a"]).rows()
    assert [row["prompt"] for row in both] == ["a", "a"] and both[0]["image"] != both[1]["image"]
    assert ControlSettings().rows() == []


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (("--proportion_empty_prompts=1.5",), InputError, "from 0 to 1"),
        (("--validation_prompt", "a cat"), ConfigError, "go together"),
        (
            ("--validation_prompt", "a", "b", "--validation_image", "1", "2", "3"),
            ConfigError,
            "2 values of valid.* for 3",
        ),
        (("--validation_prompt", "a", "--validation_image", "nowhere.png"), InputError, "nowhere.png"),
        (("--conditioning_image_column=edges",), Problems, "no column 'edges'"),
        (("--caption_column=txt",), Problems, "did you mean 'text'"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(flags, error, words, places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(controlnet, "pipeline", lambda settings: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        run(places, tmp_path, *flags)


def test_a_network_for_another_model_is_refused(places, tmp_path) -> None:
    langevin.ControlNetModel.from_unet(tiny.unets(cross_attention_dim=16)[1]).save_pretrained(tmp_path / "net")
    with pytest.raises(ConfigError, match="cross_attention_dim"):
        run(places, tmp_path, f"--controlnet_model_name_or_path={tmp_path / 'net'}")
