"""Both sides of the training benchmark: they start from the same loss and gradient, and both are timed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import train
from tests.training.recipes import places


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_the_plain_loop_and_the_recipe_train_the_same(lora, tmp_path, monkeypatch) -> None:
    case = train.Case(lora=lora, cached=lora, resolution=16, accumulated=2, warm=1, steps=2)
    model = places.model(tmp_path)
    monkeypatch.setitem(train.CASES, "row", case)
    monkeypatch.setattr(train, "model_for", lambda folder, case: model)
    for library in ("langevin", "diffusers"):
        figures = train.train("row", library, tmp_path)
        assert set(figures) == {"row, ms per picture"} and all(value > 0 for value in figures.values())
    ours, peer = (torch.load(tmp_path / f"row-{library}.pt") for library in ("langevin", "diffusers"))
    assert ours.numel() > 50 and float((ours - peer).norm() / peer.norm()) < 1e-5
    assert (tmp_path / "row-langevin-out" / "log.jsonl").read_text().count("\n") == 3
