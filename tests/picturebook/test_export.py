"""The exported text encoder carries the published names, in a file that others may read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from langevin.picturebook.export import published_names


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_published_names(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weight = torch.arange(6.0).reshape(2, 3)
    save_file({f"{prefix}final_layer_norm.weight": weight}, path)
    mask = os.umask(0o022)
    try:
        published_names(path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644 and os.listdir(tmp_path) == [path.name]
    stored = load_file(path)
    assert list(stored) == ["text_model.final_layer_norm.weight"]
    assert torch.equal(stored["text_model.final_layer_norm.weight"], weight)
