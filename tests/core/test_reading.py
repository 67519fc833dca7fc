"""Tensors read from a file: the bits of a plain cast, whatever kind and place, and files that change meanwhile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from langevin.core.errors import WeightsError
from langevin.core.file_cache import CachedFile
from langevin.core.weights_io import CHUNK, SafetensorsFile, open_plain, write_safetensors

CASTS = [
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float16),
    (torch.float64, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.int64, torch.int64),
]
LARGE = CHUNK // 4 + 12345
"""Elements of which no type of the casts has room for all in one read."""


@pytest.fixture(params=[1, 3], autouse=True)
def total(request: pytest.FixtureRequest) -> Iterator[None]:
    """Read in one thread and in three."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return tensors of all shapes and layouts, with values at the ends of what their type holds."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(LARGE, generator=draw, dtype=torch.float64) * 1e3
    if dtype.is_floating_point:
        facts = torch.finfo(dtype)
        ends = [0.0, -0.0, float("inf"), -float("inf"), facts.max, facts.min, facts.tiny, facts.smallest_normal / 4]
        values[: len(ends)] = torch.tensor(ends, dtype=torch.float64)
    large = values.to(dtype)
    return {
        "large": large,
        "scalar": large[9].clone(),
        "empty": large[:0].view(0, 3),
        "turned": large[:15].view(3, 5).t(),
        "every other": large[:40].view(4, 10)[:, ::2],
        "after": large[:3].clone(),
    }


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of a tensor, so that 0.0 and -0.0 differ."""
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize(("held", "wanted"), CASTS)
@pytest.mark.parametrize(("ending", "shown"), [("safetensors", True), ("safetensors", False), ("bin", True)])
def test_the_bits_are_those_of_a_plain_cast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: torch.dtype, wanted: torch.dtype, ending: str, shown: bool
) -> None:
    if not shown:
        monkeypatch.setattr(sys, "platform", "other")
    made = tensors(held)
    path = tmp_path / f"x.{ending}"
    write_safetensors(path, made, {}) if ending == "safetensors" else torch.save(made, path)
    with open_plain(path) as file:
        targets = {name: torch.empty(tensor.shape, dtype=wanted) for name, tensor in made.items()}
        file.read(targets)
    for name, tensor in made.items():
        assert torch.equal(bits(targets[name]), bits(tensor.to(wanted))), name


def test_places_that_are_not_aligned(tmp_path: Path) -> None:
    values = torch.randn(1000)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    header += b" " * (1 - len(header) % 4)
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    with SafetensorsFile(path) as file:
        assert file.entries["x"].start % 4 and file.view("x") is None
        for dtype in (torch.float32, torch.bfloat16):
            target = torch.empty(1000, dtype=dtype)
            file.read({"x": target})
            assert torch.equal(target, values.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_file_that_is_cut_while_it_is_open(tmp_path: Path, dtype: torch.dtype, ending: str) -> None:
    made = {"a": torch.randn(LARGE), "b": torch.randn(LARGE)}
    path = tmp_path / f"x.{ending}"
    write_safetensors(path, made, {}) if ending == "safetensors" else torch.save(made, path)
    with open_plain(path) as file:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(WeightsError, match="became shorter while it was read"):
            file.read({name: torch.empty(LARGE, dtype=dtype) for name in made})
        for _ in range(2):
            with pytest.raises(WeightsError, match="became shorter while it was read"):
                file.view("a")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not show their cache of files")
@pytest.mark.parametrize("left", [0.5, 0.9999999])
def test_a_file_that_is_cut_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.randn(LARGE)}, {})
    size = (tmp_path / "x.safetensors").stat().st_size

    class Cut(CachedFile):
        def __init__(self, descriptor: int) -> None:
            super().__init__(descriptor)
            os.truncate(tmp_path / "x.safetensors", int(size * left))

    monkeypatch.setattr("langevin.core.weights_io.CachedFile", Cut)
    cut = pytest.raises(WeightsError, match="became shorter while it was read")
    with SafetensorsFile(tmp_path / "x.safetensors") as file, cut:
        file.read({"a": torch.empty(LARGE, dtype=torch.bfloat16)})


def test_where_the_system_does_not_read_at_a_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    made = tensors(torch.float32)
    write_safetensors(tmp_path / "x.safetensors", made, {})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        targets = {name: torch.empty(tensor.shape, dtype=torch.bfloat16) for name, tensor in made.items()}
        file.read(targets)
    assert all(torch.equal(targets[name], tensor.bfloat16()) for name, tensor in made.items())
