"""Pictures on the way, trackers and uploads: what is told of a run does not change it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from langevin.core.errors import InputError, MissingDependencyError
from langevin.training.machine import accelerator
from langevin.training.recipes import common, dreambooth
from langevin.training.settings import Settings
from tests.training.recipes.places import model, pictures, trained

LORA = (dreambooth.LoraSettings, dreambooth.train_lora)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base, shown = model(tmp_path_factory.mktemp("base")), pictures(tmp_path_factory.mktemp("subject"), 3)
    flags = [f"--pretrained_model_name_or_path={base}", f"--instance_data_dir={shown}", "--instance_prompt=a sks cat"]
    return [*flags, "--learning_rate=0.05"]


def test_pictures_are_drawn_on_the_way_and_change_nothing(words, tmp_path) -> None:
    quiet = trained(LORA, [*words, f"--output_dir={tmp_path / 'quiet'}"])
    looks = ["--validation_prompt=a cat | a sks cat", "--num_validation_images=3", "--validation_steps=2"]
    folder = trained(LORA, [*words, f"--output_dir={tmp_path / 'looking'}", *looks])
    sheets = sorted((folder / "previews").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-2.png", "step-4.png"]
    assert all(Image.open(sheet).size == (3 * 16, 2 * 16) for sheet in sheets)
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    one, other = (load_file(path / "pytorch_lora_weights.safetensors") for path in (quiet, folder))
    assert all(one[name].equal(other[name]) for name in one)


def test_looks_may_be_counted_in_epochs(words, tmp_path) -> None:
    looks = ["--validation_prompt=a cat", "--num_validation_images=1", "--validation_epochs=2"]
    folder = trained(LORA, [*words, f"--output_dir={tmp_path}", *looks])
    assert [sheet.name for sheet in sorted((folder / "previews").iterdir())] == ["step-3.png", "step-4.png"]


def test_trackers_are_told_the_figures_and_shown_the_pictures(words, tmp_path, monkeypatch) -> None:
    from accelerate import Accelerator

    told: list = []
    monkeypatch.setattr(common.Settings, "trackers", lambda self: ("wandb",))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Image=lambda picture: picture.size))
    tracker = types.SimpleNamespace(name="wandb", log=lambda values, step: told.append((step, values)))

    def begin(self, project, config):
        told.append((project, config["rank"], config["learning_rate"]))
        self.trackers = [tracker]

    monkeypatch.setattr(Accelerator, "init_trackers", begin)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda names, *rest: names)
    monkeypatch.setattr(Accelerator, "end_training", lambda self: told.append("end"))
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: tracker.log(values, step))
    looks = ["--validation_prompt=a cat", "--num_validation_images=1", "--validation_steps=4"]
    trained(LORA, [*words, f"--output_dir={tmp_path / 'named'}", *looks])
    assert told[0] == ("named", 4, 0.05) and told[-1] == "end"
    assert [step for step, values in told[1:-1] if "loss" in values] == [0, 1, 2, 3]
    assert (4, {"validation": (16, 16)}) in told


def test_trackers_that_are_not_there() -> None:
    with pytest.raises(InputError, match="did you mean 'tensorboard'"):
        Settings(report_to="tensorbord").check()
    assert Settings(report_to="none").trackers() == ()
    assert Settings(report_to="all").trackers() == ("tensorboard", "wandb")
    assert set(Settings().trackers()) <= {"tensorboard"}


def test_a_tracker_without_its_package_is_named_before_training(words, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        trained(LORA, [*words, f"--output_dir={tmp_path}", "--report_to=wandb"])
    assert not list(Path(tmp_path).iterdir())


def test_what_is_uploaded_is_the_result_alone(words, tmp_path, monkeypatch) -> None:
    seen: dict = {}

    def upload(folder, hub, *, card):
        seen.update(
            hub, card=card("me/my-cat"), files=sorted(path.name for path in Path(folder).rglob("*") if path.is_file())
        )

    monkeypatch.setattr(common, "upload", upload)
    folder = tmp_path / "my-cat"
    trained(LORA, [*words, f"--output_dir={folder}", "--checkpointing_steps=2", "--push_to_hub", "--hub_token=secret"])
    assert 'pipe.load_lora_weights("me/my-cat")' in seen.pop("card")
    assert seen == {
        "repo_id": "my-cat",
        "token": "secret",
        "files": ["pytorch_lora_weights.safetensors", "settings.json"],
    }
    assert "secret" not in (folder / "settings.json").read_text()


def test_folders_of_trackers_and_tf32_are_heard(tmp_path) -> None:
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    try:
        products.allow_tf32 = False
        common.run_of(Settings(output_dir=str(tmp_path), lr_warmup_steps=0), 5)
        assert not products.allow_tf32
        heard = Settings(output_dir=str(tmp_path), lr_warmup_steps=0, logging_dir="curves", allow_tf32=True)
        run = common.run_of(heard, 5)
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before
    assert Path(accelerator(run).project_dir) == tmp_path / "curves"
