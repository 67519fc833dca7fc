"""What torch.save wrote is read as torch reads it: every type, stride and sharing, both formats, inside wraps."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from langevin.core.errors import WeightsError
from langevin.core.pickles import PickleFile, overlapping, read_objects
from langevin.core.unpickling import Inert
from langevin.core.weights_io import TensorFile, open_plain

BASE = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
STATE: dict[str, torch.Tensor] = OrderedDict(
    whole=BASE,
    transposed=BASE.t(),
    strided=BASE[::2, 1:3],
    column=BASE[:, 3:4],
    part=BASE[3:5],
    expanded=torch.ones(1).expand(4, 5),
    scalar=torch.tensor(3.0),
    empty=torch.empty(0, 4),
    half=BASE.half(),
    brain=BASE.bfloat16(),
    double=BASE.double(),
    eight=BASE.to(torch.float8_e4m3fn),
    complex=BASE.to(torch.complex64),
    long=torch.arange(7),
    words=torch.arange(5).to(torch.uint16),
    truths=torch.tensor([True, False]),
    parameter=nn.Parameter(BASE[1:3] * 2),
)
FORMATS = [(new, protocol) for new in (True, False) for protocol in (2, 4, 5)]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat, wanted = (value.detach().contiguous().view(-1).view(torch.uint8) for value in (one, other))
    return torch.equal(flat, wanted)


def save(path: Path, value: Any, new: bool = True, protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    return path


def values(file: TensorFile) -> dict[str, torch.Tensor]:
    """Return the tensors of an opened file as a model gets them: views of the file, copies elsewhere."""
    read = {name: file.view(name) for name in file.entries}
    lacking = {name: file.entries[name] for name, view in read.items() if view is None}
    copies = {name: torch.empty(entry.shape, dtype=entry.dtype) for name, entry in lacking.items()}
    file.read(copies)
    return read | copies


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a dictionary of weights."""
    with open_plain(path) as file:
        return values(file)


@pytest.mark.parametrize(("new", "protocol"), FORMATS)
def test_every_tensor_is_what_it_was(tmp_path: Path, new: bool, protocol: int) -> None:
    path = save(tmp_path / "x.bin", STATE, new, protocol)
    read = tensors(path)
    assert list(read) == list(STATE)
    for name, value in STATE.items():
        assert same(read[name], value), name
    with PickleFile(path) as file:
        assert file.root == "" and file.extras == {} and file.metadata == {}
        targets = {name: torch.empty(v.shape) for name, v in STATE.items() if not v.is_complex()}
        file.read(targets)
        assert all(torch.equal(target, STATE[name].detach().float()) for name, target in targets.items())


@pytest.mark.parametrize(("new", "protocol"), FORMATS)
def test_what_stands_beside_the_weights(tmp_path: Path, new: bool, protocol: int) -> None:
    beside = {
        "global_step": 7,
        "loss": np.float64(0.5),
        "hyper_parameters": argparse.Namespace(lr=1e-4),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "array": np.arange(3),
        "where": Path("x"),
        "kinds": {"a": torch.float16, "b": (1, {2})},
    }
    with PickleFile(save(tmp_path / "x.ckpt", {"state_dict": STATE, **beside}, new, protocol)) as file:
        assert file.root == "state_dict" and list(file.entries) == list(STATE)
        assert list(file.extras) == list(beside)
        assert file.metadata == {"global_step": "7", "loss": "0.5"}
        assert repr(file.extras["hyper_parameters"]) == "<argparse.Namespace>"
        assert isinstance(file.extras["array"], Inert) and file.extras["kinds"] == {"a": torch.float16, "b": (1, {2})}
    objects = read_objects(tmp_path / "x.ckpt")
    assert torch.equal(objects["optimizer_states"][0]["state"][0]["exp_avg"], torch.ones(3))
    assert same(objects["state_dict"]["transposed"], STATE["transposed"])
    with pytest.raises(WeightsError, match=r"entries that are no tensors: global_step, loss"):
        tensors(tmp_path / "x.ckpt")


WRAPS: dict[str, tuple[Callable[[dict], Any], str, str]] = {
    "nested twice": (lambda s: {"state_dict": {"model": s}}, "state_dict.model", "whole"),
    "averages first": (lambda s: {"params": {}, "params_ema": s}, "params_ema", "whole"),
    "two parts": (lambda s: {"image_proj": s, "ip_adapter": {"1": {"w": s["whole"]}}}, "", "image_proj.whole"),
    "a module": (lambda s: {"module": s, "epoch": 3}, "module", "whole"),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_weights_inside_wraps(tmp_path: Path, wrap: str) -> None:
    make, root, name = WRAPS[wrap]
    with PickleFile(save(tmp_path / "x.pt", make({"whole": BASE}))) as file:
        assert file.root == root and torch.equal(values(file)[name], BASE)


def test_names_that_meet_and_tensors_that_share(tmp_path: Path) -> None:
    save(tmp_path / "x.pt", {"a.b": BASE, "a": {"b": BASE}})
    with pytest.raises(WeightsError, match=r"two weights have the name 'a\.b'"):
        PickleFile(tmp_path / "x.pt")
    read = tensors(save(tmp_path / "y.pt", {"one": BASE, "two": BASE[2:4], "three": BASE.clone()}))
    read["one"].zero_()
    assert torch.equal(read["two"], BASE[2:4]), "a change of one would change the other"
    with PickleFile(tmp_path / "y.pt") as file:
        assert overlapping(file.entries) == {"one", "two"}
        assert file.view("one") is None and file.view("three") is not None


def test_values_that_stand_for_many(tmp_path: Path) -> None:
    save(tmp_path / "x.pt", {"a": torch.ones(1).expand(1 << 14, 1 << 15)})
    with pytest.raises(WeightsError, match="repeats few values to 2147483648 bytes"):
        PickleFile(tmp_path / "x.pt")


def test_a_change_of_what_was_read_does_not_reach_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"a": BASE})
    before = path.read_bytes()
    tensors(path)["a"].zero_()
    assert path.read_bytes() == before
