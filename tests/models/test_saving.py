"""Saving: what is on the disk is the old model or the new one, never a mixture, and nothing else is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from langevin import AutoencoderKL
from langevin.core.errors import ConfigError, InputError
from langevin.models.weight_files import parse_size, split_into_shards

STEM = "diffusion_pytorch_model"
TINY = {"block_out_channels": [32], "norm_num_groups": 8}


def filled(value: float) -> AutoencoderKL:
    """Return a tiny model whose weights all have one value."""
    model = AutoencoderKL(**TINY)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    """A process that saves two models in turn, in one file and in shards, is killed at random moments."""
    folder = tmp_path / "vae"
    models = {1.0: filled(1.0), 2.0: filled(2.0)}
    models[1.0].save_pretrained(folder)
    start = time.perf_counter()
    models[2.0].save_pretrained(folder, max_shard_size="100KB")
    once = time.perf_counter() - start
    chance = random.Random(0)
    seen = set()
    for _ in range(16):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    models[1.0].save_pretrained(folder)
                    models[2.0].save_pretrained(folder, max_shard_size="100KB")
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.2, 3.0) * once)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = AutoencoderKL.from_pretrained(folder)
        values = {v for p in loaded.parameters() for v in (p.min().item(), p.max().item())}
        assert len(values) == 1, "a mixture of two models"
        seen |= values
    assert seen <= {1.0, 2.0}
    models[1.0].save_pretrained(folder)
    assert names(folder) == {"config.json", f"{STEM}.safetensors"}


def test_an_error_while_saving_changes_nothing(tmp_path: Path) -> None:
    filled(1.0).save_pretrained(tmp_path / "vae")
    before = {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    broken = filled(2.0)
    broken.decoder.conv_out.to("meta")
    with pytest.raises(OSError, match=r"'decoder.conv_out.*' has no values"):
        broken.save_pretrained(tmp_path / "vae", max_shard_size="100KB")
    assert {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()} == before
    assert names(tmp_path) == {"vae"}, "no partial folder is left behind"


def test_stale_shards_go_and_everything_else_stays(tmp_path: Path) -> None:
    model = filled(1.0)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = names(tmp_path)
    assert f"{STEM}.safetensors.index.json" in shards and len(shards) > 3
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{STEM}.safetensors").write_text("mine too")
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    assert shards < names(tmp_path), "a variant lies beside the original"
    filled(2.0).save_pretrained(tmp_path)
    left = names(tmp_path)
    assert left & shards == {"config.json"} and {"README.md", "sub", f"{STEM}.safetensors"} < left
    assert (tmp_path / "sub" / f"{STEM}.safetensors").read_text() == "mine too"
    assert AutoencoderKL.from_pretrained(tmp_path).decoder.conv_out.bias.max() == 2
    assert AutoencoderKL.from_pretrained(tmp_path, variant="fp16").decoder.conv_out.bias.max() == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    filled(1.0).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and f"{STEM}.safetensors" in names(tmp_path / "real")


def test_the_index_and_the_shards(tmp_path: Path) -> None:
    model = AutoencoderKL(**TINY)
    model.save_pretrained(tmp_path, max_shard_size=50_000)
    index = json.loads((tmp_path / f"{STEM}.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == model.get_memory_footprint()
    assert set(index["weight_map"]) == set(model.state_dict())
    count = len(set(index["weight_map"].values()))
    assert names(tmp_path) == {
        "config.json",
        f"{STEM}.safetensors.index.json",
        *(f"{STEM}-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)),
    }


def test_other_processes_write_nothing_and_a_save_function_is_used(tmp_path: Path) -> None:
    model, calls = filled(1.0), []
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()

    def save(tensors: dict, path: Path) -> None:
        calls.append(Path(path).name)
        torch.save(dict(tensors), path)

    model.save_pretrained(tmp_path / "vae", safe_serialization=False, save_function=save)
    assert calls == [f"{STEM}.bin"]
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").decoder.conv_out.bias.max() == 1


def test_half_precision_is_kept(tmp_path: Path) -> None:
    model = AutoencoderKL(**TINY).half()
    model.save_pretrained(tmp_path, variant="fp16")
    loaded = AutoencoderKL.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert (tmp_path / f"{STEM}.fp16.safetensors").stat().st_size < 2.2 * model.num_parameters()


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    model = filled(1.0)
    with pytest.raises(ConfigError, match="did you mean 'max_shard_size'"):
        model.save_pretrained(tmp_path, max_shard_sise="1GB")
    with pytest.raises(InputError, match="'10 apples' is not a size"):
        model.save_pretrained(tmp_path, max_shard_size="10 apples")
    with pytest.raises(InputError, match=r"variant is '\.\./x'"):
        model.save_pretrained(tmp_path, variant="../x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


def test_sizes_and_shards() -> None:
    assert [parse_size(s) for s in (7, "1KB", "1.5 MB", "2gb", "1GiB")] == [7, 1000, 1_500_000, 2 * 10**9, 2**30]
    for bad in (0, -1, True, "", "10", "GB", None):
        with pytest.raises(InputError, match="is not a size"):
            parse_size(bad)
    tensors = {name: torch.zeros(size) for name, size in (("a", 2), ("b", 2), ("c", 9), ("d", 1))}
    assert [list(s) for s in split_into_shards(tensors, 16)] == [["a", "b"], ["c"], ["d"]]


def test_facts_about_a_model() -> None:
    model = AutoencoderKL(**TINY)
    total = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == total == model.num_parameters(exclude_embeddings=True)
    model.decoder.requires_grad_(False)
    assert 0 < model.num_parameters(only_trainable=True) < total
    assert model.device.type == "cpu" and model.half().dtype == torch.float16
    assert model.get_memory_footprint() == 2 * total
