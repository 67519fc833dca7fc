"""What a run saves is loaded again: every recipe's file gives back what was trained, and a lost one is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import langevin
from langevin.core.errors import WeightsError
from langevin.training import proof
from langevin.training.proof import compared
from langevin.training.recipes import RECIPES, text_to_image
from langevin.training.trainables import LowRank
from tests.pipelines import tiny, tiny_xl
from tests.training.recipes.places import model, pictures, trained

NETWORK = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
LORA = (text_to_image.LoraSettings, text_to_image.train_lora)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Stable Diffusion XL pipeline."""
    folder = tmp_path_factory.mktemp("xl")
    tiny_xl.base(langevin, folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a tiny pipeline and of three pictures with captions and further pictures."""
    shown = pictures(tmp_path_factory.mktemp("pictures"), 3)
    (shown / "config.json").write_text(json.dumps(NETWORK))
    with (shown / "metadata.jsonl").open("w") as file:
        for k in range(3):
            tiny.picture(k + 9, (20, 24)).save(shown / f"{k}-edges.png")
            columns = {"conditioning_image_file_name": f"{k}-edges.png", "input_image_file_name": f"{k}-edges.png"}
            columns |= {"text": "a cat", "edit_prompt": "a dog", "edited_image_file_name": f"{k}.png"}
            file.write(json.dumps({"file_name": f"{k}.png", **columns}) + "\n")
    return model(tmp_path_factory.mktemp("base")), shown


def words(name: str, places, folder: Path) -> list[str]:
    """Return flags of a recipe."""
    base, shown = places
    found = [f"--output_dir={folder}", "--learning_rate=0.02"]
    if name == "unconditional":
        config = [f"--model_config_name_or_path={shown / 'config.json'}", "--ddpm_num_steps=10"]
        return [*found, f"--train_data_dir={shown}", *config, "--ddpm_num_inference_steps=1", "--eval_batch_size=1"]
    found.append(f"--pretrained_model_name_or_path={base}")
    if name.startswith(("dreambooth", "custom")):
        word = "<new1>" if name == "custom_diffusion" else "sks"
        found += [f"--instance_data_dir={shown}", f"--instance_prompt=a {word} cat"]
        found += {
            "custom_diffusion": ["--modifier_token=<new1>"],
            "dreambooth_lora": ["--train_text_encoder"],
            "dreambooth_lora_sdxl": ["--train_text_encoder"],
        }.get(name, [])
        return found
    found.append(f"--train_data_dir={shown}")
    return found + {
        "textual_inversion": ["--placeholder_token=<toy>", "--initializer_token=cat", "--repeats=1"],
        "text_to_image": ["--use_ema"],
    }.get(name, [])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_proves_what_it_saved(name: str, places, large, tmp_path) -> None:
    base = large if name.endswith("_sdxl") else places[0]
    trained(RECIPES[name].loaded(), words(name, (base, places[1]), tmp_path / "out"), "--max_train_steps=2")
    found = json.loads((tmp_path / "out" / proof.FILE).read_text())
    assert found["verdict"] == "proven", found
    assert found["gap"] <= found["allowed"] < found["effect"] and found["effect"] > 1e-4


def test_a_file_that_lost_weights_is_kept_and_named(places, tmp_path, monkeypatch) -> None:
    save = LowRank.save

    def damaged(self, folder: Path) -> None:
        save(self, folder)
        if folder.name == "out":
            file = folder / "pytorch_lora_weights.safetensors"
            save_file({name: torch.zeros_like(part) for name, part in load_file(file).items()}, file)

    monkeypatch.setattr(LowRank, "save", damaged)
    said = r"out.pytorch_lora_weights\.safetensors is not what was trained: its predictions differ by"
    flags = words("text_to_image_lora", places, tmp_path / "out")
    with pytest.raises(WeightsError, match=said):
        trained(LORA, flags, "--checkpointing_steps=2")
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    assert json.loads((tmp_path / "out" / proof.FILE).read_text())["verdict"] == "failed"
    assert "is not proven: its predictions differ" in (tmp_path / "out" / "report.html").read_text()
    trained(LORA, flags, "--no_proof", "--output_dir", str(tmp_path / "quiet" / "out"))
    assert not (tmp_path / "quiet" / "out" / proof.FILE).exists()


@pytest.mark.parametrize(
    "name, fresh", [("text_to_image_lora", {"unet"}), ("dreambooth_lora", {"unet", "text_encoder"})]
)
def test_what_a_lora_does_not_change_is_not_loaded_again(name, fresh, places, tmp_path, monkeypatch) -> None:
    seen: list[set[str]] = []
    check = proof.alike

    def compared(pipe, other):
        nets = {part: net for part, net in pipe.components.items() if isinstance(net, torch.nn.Module)}
        seen.append({part for part, net in nets.items() if net is not other.components[part]})
        return check(pipe, other)

    monkeypatch.setattr(proof, "alike", compared)
    trained(RECIPES[name].loaded(), words(name, places, tmp_path), "--max_train_steps=1")
    assert seen == [fresh]


def test_what_only_steps_need_is_gone_before_the_result_is_loaded(places, tmp_path, monkeypatch) -> None:
    seen: list[bool] = []
    check = proof.Proof.check

    def checked(self, run, folder):
        seen.append(run.average is None and not run.optimizer.state_dict()["state"])
        return check(self, run, folder)

    monkeypatch.setattr(proof.Proof, "check", checked)
    trained(RECIPES["text_to_image"].loaded(), words("text_to_image", places, tmp_path), "--max_train_steps=1")
    assert seen == [True]


def test_what_there_is_no_memory_for_is_left_out(places, tmp_path, monkeypatch) -> None:
    def full(*args) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(proof, "alike", full)
    folder = trained(LORA, words("text_to_image_lora", places, tmp_path), "--max_train_steps=1")
    assert json.loads((folder / proof.FILE).read_text())["verdict"] == "left out"
    assert "is not proven: there was no memory" in (folder / "report.html").read_text()


def test_a_file_that_cannot_be_loaded_is_named(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(LowRank, "save", lambda self, folder: (folder / "pytorch_lora_weights.safetensors").touch())
    with pytest.raises(WeightsError, match=r"pytorch_lora_weights\.safetensors is not what was trained: it cannot be"):
        trained(LORA, words("text_to_image_lora", places, tmp_path), "--max_train_steps=1")


def test_training_that_changes_nothing_is_a_warning(places, tmp_path) -> None:
    trained(LORA, [*words("text_to_image_lora", places, tmp_path), "--learning_rate=0"])
    assert json.loads((tmp_path / proof.FILE).read_text())["verdict"] == "idle"
    assert "Training changed nothing" in (tmp_path / "warnings.jsonl").read_text()


@pytest.mark.parametrize(
    ("start", "predictions", "verdict"),
    [
        (0.0, (1.0, 1.0, 1.0), "proven"),
        (0.0, (1.0, 1.0, 1.00005), "proven"),
        (0.0, (1.0, 1.0, 1.001), "failed"),
        (1.0 - 1e-6, (1.0, 1.0, 1.0 - 1e-6), "failed"),
        (1.0 - 1e-6, (1.0, 1.0 + 1e-6, 1.0 - 1e-6), "proven"),
        (1.0, (1.0, 1.0, 1.0), "idle"),
        (0.0, (1.0, 1.0, float("nan")), "failed"),
    ],
)
def test_what_counts_as_a_proof(start, predictions, verdict) -> None:
    """A tiny effect must be there too, unless the same network says as different things in two calls."""
    here, again, there = (torch.full((2,), value, dtype=torch.float64) for value in predictions)
    assert compared("file", "no", torch.full((2,), start, dtype=torch.float64), [here, again, there]).verdict == verdict
    assert compared("file", "no", here, [here, again, there[:1]]).verdict == "failed"
