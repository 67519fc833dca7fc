"""Weight files of every format: told by their first bytes, opened, and read whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langevin.core.errors import WeightsError
from langevin.core.pickles import PickleFile
from langevin.core.weights_io import SafetensorsFile, write_safetensors
from langevin.weights.checkpoint import ARCHIVE, GGUF, KERAS, PICKLE, SAFETENSORS, format_of, open_weights, read_tensors

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4)}
HEADS = {
    b"\x89HDF\r\n\x1a\n": KERAS,
    b"GGUF\3\0\0\0{": GGUF,
    b"PK\x03\x04": ARCHIVE,
    b"\x80\x02": PICKLE,
    b"PK\0\0\0\0\0\0{": SAFETENSORS,
    b'{"a": 1}{': None,
    b"a text": None,
    b"": None,
}


@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_a_format_is_told_by_the_first_bytes(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(head)
    assert format_of(tmp_path / "x.ckpt") == HEADS[head]


def test_a_file_is_opened_by_what_it_is_and_not_by_its_name(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.ckpt", STATE, {})
    torch.save(STATE, tmp_path / "two.safetensors")
    torch.save(STATE, tmp_path / "three.bin", _use_new_zipfile_serialization=False)
    for name, kind in {"one.ckpt": SafetensorsFile, "two.safetensors": PickleFile, "three.bin": PickleFile}.items():
        with open_weights(tmp_path / name) as file:
            assert type(file) is kind
            found = read_tensors(file)
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[key], value) for key, value in STATE.items())
    (tmp_path / "page.bin").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(WeightsError, match="an HTML page"):
        open_weights(tmp_path / "page.bin")


def test_tensors_that_have_no_view_are_read(tmp_path: Path) -> None:
    torch.save({"turned": STATE["a"].T}, tmp_path / "x.pt")
    with open_weights(tmp_path / "x.pt") as file:
        assert file.view("turned") is None
        assert torch.equal(read_tensors(file)["turned"], STATE["a"].T)
