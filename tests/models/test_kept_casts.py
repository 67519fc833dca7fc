"""Casts that are kept: the same weights from the second load on, mapped, made anew when a file changes, never half."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import langevin
from langevin.core.errors import WeightsError
from langevin.core.weights_io import SafetensorsFile, write_safetensors
from langevin.models import kept_casts
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from langevin.picturebook import model_folder
from tests.models.tiny import TINY

HALF = torch.bfloat16


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LANGEVIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "casts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    UNet2DConditionModel(**TINY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def loaded(folder: Path, **more: Any) -> dict[str, torch.Tensor]:
    return UNet2DConditionModel.from_pretrained(folder, **{"torch_dtype": HALF, "keep_cast": True, **more}).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*")) if cache.exists() else []


def test_the_second_load_maps_what_the_first_has_kept(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = loaded(folder, keep_cast=False)
    assert files(cache) == [], "nothing is kept unasked"
    assert same(loaded(folder), wanted)
    (name,) = files(cache)
    with SafetensorsFile(cache / name) as file:
        assert file.metadata["source"] == str(folder / "diffusion_pytorch_model.safetensors")
    written = os.stat(cache / name).st_mtime_ns
    monkeypatch.setattr(SafetensorsFile, "read", None)  # a cast would fail
    assert same(loaded(folder), wanted)
    assert files(cache) == [name] and os.stat(cache / name).st_mtime_ns == written


def test_every_type_is_kept_apart_and_none_that_needs_no_cast(folder: Path, cache: Path) -> None:
    loaded(folder, torch_dtype=torch.float32)
    loaded(folder, torch_dtype="auto")
    assert files(cache) == []
    for dtype in (HALF, torch.float16):
        assert same(loaded(folder, torch_dtype=dtype), loaded(folder, torch_dtype=dtype, keep_cast=False))
    assert len(files(cache)) == 2


def test_a_changed_file_is_cast_anew_and_its_old_cast_goes(folder: Path, cache: Path) -> None:
    loaded(folder)
    before = files(cache)
    torch.manual_seed(1)
    UNet2DConditionModel(**TINY).save_pretrained(folder)
    assert same(loaded(folder), loaded(folder, keep_cast=False))
    assert len(files(cache)) == 1 and files(cache) != before


def test_a_damaged_cast_is_made_anew(folder: Path, cache: Path) -> None:
    wanted = loaded(folder, keep_cast=False)
    loaded(folder)
    (name,) = files(cache)
    (cache / name).write_bytes((cache / name).read_bytes()[:-10])
    assert same(loaded(folder), wanted)
    with SafetensorsFile(cache / name):
        pass


def test_shards_and_pickles(folder: Path, cache: Path, tmp_path: Path) -> None:
    model = UNet2DConditionModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert same(loaded(tmp_path / "shards"), loaded(folder, keep_cast=False))
    shards = len(list((tmp_path / "shards").glob("*.safetensors")))
    assert shards > 1 and len(files(cache)) == shards
    model.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    assert same(loaded(tmp_path / "pickle"), loaded(folder, keep_cast=False))
    assert len(files(cache)) == shards + 1


def test_what_is_not_finite_is_not_kept_and_told_as_ever(folder: Path, cache: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    state = {k: v.clone() for k, v in UNet2DConditionModel.from_pretrained(folder).state_dict().items()}
    state["conv_in.weight"] = torch.full_like(state["conv_in.weight"], float("nan"))
    write_safetensors(path, state, {})
    with pytest.raises(WeightsError, match=r"conv_in\.weight"):
        loaded(folder)
    assert files(cache) == []
    assert loaded(folder, check_finite=False)["conv_in.weight"].isnan().all()


def test_a_cache_that_cannot_be_written_is_told_and_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("LANGEVIN_CACHE", str(tmp_path / "taken"))
    with caplog.at_level(logging.WARNING, logger="langevin"):
        assert same(loaded(folder), loaded(folder, keep_cast=False))
    assert any("LANGEVIN_CACHE" in record.message for record in caplog.records)


def test_a_write_that_is_interrupted_leaves_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, *rest: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(kept_casts, "write_safetensors", broken)
    with pytest.raises(KeyboardInterrupt):
        loaded(folder)
    assert files(cache) == []


def test_messages_name_the_model_and_not_the_cache(folder: Path, cache: Path) -> None:
    loaded(folder)
    with pytest.raises(WeightsError, match="model") as told:
        loaded(folder, in_channels=9)
    assert str(cache) not in str(told.value)


def test_a_pipeline_keeps_the_casts_of_its_networks(cache: Path) -> None:
    kept = [langevin.DiffusionPipeline.from_pretrained(model_folder(), torch_dtype=HALF, keep_cast=True) for _ in "ab"]
    plain = langevin.DiffusionPipeline.from_pretrained(model_folder(), torch_dtype=HALF)
    assert len(files(cache)) >= 2
    for name, network in plain._networks.items():
        for pipe in kept:
            assert same(getattr(pipe, name).state_dict(), network.state_dict()), name
