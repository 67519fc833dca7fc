"""Inception by torch-fidelity: what it is given, and what is said when it cannot be."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from PIL import Image
from torch import nn

from langevin.cli.evaluate import Eyes
from langevin.core.errors import ConfigError, InputError, MissingDependencyError
from langevin.evaluation.inception import Inception


class Stand(nn.Module):
    """A stand-in with the signature of the package's class: the mean colour, shifted by its only weight."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.shift = nn.Parameter(torch.zeros(3))
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8 and pixels.ndim == 4 and pixels.shape[1] == 3
        return (pixels.float().mean((2, 3)) + self.shift,)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(FeatureExtractorInceptionV3=Stand))
    torch.save({"shift": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_pictures_of_any_sizes_keep_their_places(weights) -> None:
    colours = [(10, 20, 30), (50, 60, 70), (0, 0, 0)]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip([(8, 8), (9, 5), (8, 8)], colours, strict=True)]
    eyes = Eyes(features=str(weights), device="cpu").extractor()
    assert isinstance(eyes, Inception) and eyes.name == "Inception v3" and "299" in eyes.policy
    assert eyes(pictures).tolist() == [[11, 22, 33], [51, 62, 73], [1, 2, 3]]


def test_what_cannot_be_used_is_said(weights, tmp_path, monkeypatch) -> None:
    torch.save({"wrong": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other.pth does not hold the weights of Inception \(pt_inception"):
        Inception(tmp_path / "other.pth")
    with pytest.raises(InputError, match="--features pt_inception-2015-12-05"):
        Eyes(features="inception").extractor()
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingDependencyError, match=r"torch.fidelity"):
        Inception(weights)
