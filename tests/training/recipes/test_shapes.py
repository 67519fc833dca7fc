"""Training at several sizes: every batch has one, resuming is exact, and pictures keep more of themselves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from langevin.core.errors import InputError
from langevin.core.records import read_folder
from langevin.training.data.examples import PictureExamples
from langevin.training.recipes.text_to_image import LoraSettings, train_lora
from langevin.training.streams import Streams
from tests.pipelines import tiny
from tests.training.data.test_doctor import put
from tests.training.recipes.places import cut, digest, model, trained

RECIPE = (LoraSettings, train_lora)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of five wide pictures, four square ones and one tall one."""
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(10):
        size = (50, 30) if k < 5 else (40, 40) if k < 9 else (30, 50)
        tiny.picture(k, size).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"a cat {k}")
    return folder


def run(base: Path, shown: Path, folder: Path, *flags: str) -> Path:
    words = [f"--pretrained_model_name_or_path={base}", f"--train_data_dir={shown}", f"--output_dir={folder}"]
    return trained(RECIPE, words, "--resolution=32", "--aspect_ratio_buckets", *flags)


def test_examples_take_the_size_nearest_to_their_shape(shown) -> None:
    from langevin.training.data.framing import Framing

    data = PictureExamples(read_folder(shown), Framing(32, 32))
    assert [len(members) for members in data.bucket(1)] == [5, 4, 1]
    assert [len(members) for members in data.bucket(2)] == [5, 5]
    streams = Streams(0)
    shapes = [tuple(data.example(k, streams.at(k))["pixels"].shape) for k in range(10)]
    assert Counter(shapes) == {(3, *data.sizes[0]): 5, (3, 32, 32): 5}
    assert data.example(9, streams.at(9))["frames"].target == (32, 32)


def test_every_batch_has_one_size_and_resuming_is_exact(base, shown, tmp_path, monkeypatch) -> None:
    seen = []
    collate = PictureExamples.collate
    monkeypatch.setattr(PictureExamples, "collate", lambda *a: seen.append(collate(*a)["pixels"].shape) or collate(*a))
    flags = ("--checkpointing_steps=2", "--max_train_steps=4", "--random_flip")
    whole = run(base, shown, tmp_path / "whole", *flags)
    assert len(seen) == 4 and len(set(seen)) == 2
    run(base, shown, tmp_path / "cut", *flags)
    cut(tmp_path / "cut")
    again = run(base, shown, tmp_path / "cut", *flags, "--resume_from_checkpoint=latest")
    assert digest(again) == digest(whole)
    losses = [json.loads(line)["loss"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and all(torch.isfinite(torch.tensor(losses)))


def test_a_manifest_tells_the_sizes(base, tmp_path) -> None:
    from langevin.training.data import doctor

    for k in range(4):
        put(tmp_path / f"data/{k}.png", k, size=(50, 30) if k < 2 else (40, 40))
    (tmp_path / "data/bad.png").write_text("no picture")
    report = doctor.examine(read_folder(tmp_path / "data"), resolution=32)
    doctor.write(report, tmp_path / "manifest.jsonl")
    assert (run(base, tmp_path / "manifest.jsonl", tmp_path / "out") / "pytorch_lora_weights.safetensors").is_file()


def test_a_resolution_without_buckets_is_refused_before_a_model_is_loaded(shown, tmp_path) -> None:
    with pytest.raises(InputError, match="No bucket has a side of 4"):
        run(tmp_path / "nowhere", shown, tmp_path / "out", "--resolution=4")
