"""DreamBooth on a tiny pipeline: prior preservation, the pictures of a class, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.core.records import Problems, pictures_in
from langevin.training.data.paired import Paired
from langevin.training.recipes import dreambooth
from langevin.training.streams import Streams
from tests.training.line import Points
from tests.training.recipes.places import model, pictures, trained

LORA = (dreambooth.LoraSettings, dreambooth.train_lora)
FULL = (dreambooth.FullSettings, dreambooth.train_full)
PRIOR = ("--with_prior_preservation", "--class_prompt=a cat", "--num_class_images=3", "--sample_batch_size=2")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of three pictures."""
    return model(tmp_path_factory.mktemp("base")), pictures(tmp_path_factory.mktemp("subject"), 3)


def run(recipe, places, folder: Path, *flags: str) -> Path:
    words = [f"--pretrained_model_name_or_path={places[0]}", f"--instance_data_dir={places[1]}"]
    return trained(recipe, [*words, f"--output_dir={folder}", "--instance_prompt=a sks cat"], *flags)


def test_pictures_of_the_class_are_drawn_once(places, tmp_path) -> None:
    prior = ("--class_data_dir", str(tmp_path / "class"), *PRIOR)
    run(LORA, places, tmp_path / "out", *prior)
    drawn = {path.name: path.read_bytes() for path in pictures_in(tmp_path / "class")}
    assert sorted(drawn) == [f"class-{k:05d}.png" for k in range(3)] and len(set(drawn.values())) == 3
    run(LORA, places, tmp_path / "out", *prior)
    assert {path.name: path.read_bytes() for path in pictures_in(tmp_path / "class")} == drawn


def test_a_batch_holds_the_subject_then_the_class() -> None:
    data, stream = Paired(Numbers(0), Numbers(100), 0.25), Streams(0)
    batch = data.collate([data.example(k, stream.at(k)) for k in range(2)])
    assert batch["x"][:2].tolist() == [0, 1] and all(100 <= x < 110 for x in batch["x"][2:].tolist())
    assert batch["shares"].tolist() == [1, 1, 0.25, 0.25] and len(data) == 10
    seen = {int(data.example(0, stream.at(k))[1]) for k in range(200)}
    assert seen == set(range(100, 110))


class Numbers(Points):
    """Examples that are their numbers."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def example(self, number, stream):
        return self.first + number

    def collate(self, examples):
        return {"x": torch.tensor(examples)}


def test_without_weight_the_class_does_not_count(places, tmp_path) -> None:
    flags = ("--class_data_dir", str(tmp_path / "class"), *PRIOR)
    one = run(LORA, places, tmp_path / "one")
    two = run(LORA, places, tmp_path / "two", *flags, "--prior_loss_weight=0")
    three = run(LORA, places, tmp_path / "three", *flags)
    held = [load_file(folder / "pytorch_lora_weights.safetensors") for folder in (one, two, three)]
    assert all(torch.allclose(tensor, held[1][name], atol=1e-5) for name, tensor in held[0].items())
    assert not all(torch.allclose(tensor, held[2][name], atol=1e-5) for name, tensor in held[0].items())


def test_a_lora_may_change_the_text_encoder_too(places, tmp_path) -> None:
    folder = run(LORA, places, tmp_path, "--train_text_encoder", "--learning_rate=0.05", "--gradient_checkpointing")
    names = list(load_file(folder / "pytorch_lora_weights.safetensors"))
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
    pipe = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    before = pipe.encode_prompt("a sks cat", "cpu", 1, False)[0]
    pipe.load_lora_weights(folder)
    assert (pipe.encode_prompt("a sks cat", "cpu", 1, False)[0] - before).abs().max() > 1e-3


def test_checkpoints_of_both_networks_load_as_documented(places, tmp_path) -> None:
    from transformers import CLIPTextModel

    folder = run(FULL, places, tmp_path, "--train_text_encoder", "--checkpointing_steps=2", "--learning_rate=1e-3")
    unet = langevin.UNet2DConditionModel.from_pretrained(folder / "checkpoint-4" / "unet")
    encoder = CLIPTextModel.from_pretrained(folder / "checkpoint-4" / "text_encoder")
    pipe = langevin.DiffusionPipeline.from_pretrained(places[0], unet=unet, text_encoder=encoder)
    whole = langevin.StableDiffusionPipeline.from_pretrained(folder)
    for one, other in ((pipe.unet, whole.unet), (pipe.text_encoder, whole.text_encoder)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    base = langevin.StableDiffusionPipeline.from_pretrained(places[0])
    assert not torch.equal(encoder.state_dict()["final_layer_norm.bias"],
                           base.text_encoder.state_dict()["final_layer_norm.bias"])  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (("--instance_prompt=",), ConfigError, "instance_prompt is missing"),
        (("--with_prior_preservation",), ConfigError, "class_data_dir is missing"),
        (("--class_prompt=a cat",), ConfigError, "no effect without with_prior_preservation"),
        (("--num_class_images=0",), InputError, "at least 1"),
        (("--prior_loss_weight=-1",), InputError, "at least 0"),
        (("--instance_data_dir=nowhere",), InputError, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(flags, error, words, places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dreambooth, "pipeline", lambda settings: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        run(LORA, places, tmp_path, *flags)
    with pytest.raises(Problems, match="holds no picture"):
        run(LORA, (places[0], tmp_path), tmp_path)
