"""Weights rounded by torchao: chosen by name, refused where they cannot be multiplied, and what they do to outputs."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langevin import UNet2DConditionModel
from langevin.core import imports
from langevin.core.errors import ConfigError, MissingDependencyError
from langevin.optimization import quantisation
from langevin.optimization.quantisation import KINDS, quantise
from tests.models.tiny import TINY, noise

ROWS = "float8dq_e4m3_row"


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).eval()


@torch.no_grad()
def call(unet: nn.Module, dtype: torch.dtype) -> Tensor:
    given = (noise(2, 4, 8, 8), torch.tensor(7.0), noise(2, 7, 16, seed=1))
    return unet(*(x.to(dtype) for x in given)).sample.float()


def device(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> Any:
    """A weight on a CUDA device that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)


def test_what_cannot_be_is_refused_before_anything_is_rounded(unet, monkeypatch) -> None:
    before = copy.deepcopy(unet.state_dict())
    with pytest.raises(ConfigError, match=r"'float8dq'; did you mean 'float8"):
        quantise(unet, "float8dq")
    with pytest.raises(ConfigError, match=r"on a CUDA device, and the network is on cpu; .*to\('cuda'\).*'float8wo'"):
        quantise(unet, ROWS)
    with pytest.raises(ConfigError, match=r"no linear layer .* skip fewer"):
        quantise(unet, "int8wo", skip=("",))
    with pytest.raises(ConfigError, match="before it is compiled"):
        quantise(torch.compile(unet, backend="eager"), "int8wo")
    with pytest.raises(ConfigError, match="is being trained"):
        quantise(unet.train(), "int8wo")
    unet.eval().enable_layerwise_casting()
    with pytest.raises(ConfigError, match="disable_layerwise_casting"):
        quantise(unet, "int8wo")
    unet.disable_layerwise_casting()
    monkeypatch.setattr(imports, "is_available", lambda name: False)
    monkeypatch.setattr(imports.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"'int8wo' needs .*langevin\[quantization\]"):
        quantise(unet, "int8wo")
    assert [type(p) for p in unet.parameters()] == [nn.Parameter] * len(before)


def missing(name: str) -> None:
    raise ImportError(name)


def test_devices_and_types_that_multiply_no_float8_are_told(monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"needs compute capability 8\.9, and this device has 8\.0\. 'float8wo'"):
        quantisation.check_device(ROWS, device(monkeypatch, (8, 0)))
    weight = device(monkeypatch, (9, 0))
    with pytest.raises(ConfigError, match=r"to\(torch\.bfloat16\)"):
        quantisation.check_device(ROWS, weight)
    weight.dtype = torch.bfloat16
    quantisation.check_device(ROWS, weight)


@pytest.mark.parametrize("kind, least, most", [("int8wo", 1e-4, 0.02), ("float8wo", 1e-3, 0.05), (ROWS, 1e-3, 0.08)])
def test_layers_are_rounded_by_name(kind: str, least: float, most: float, unet, monkeypatch) -> None:
    """Float8 products are computed in place of a device by torch's own for CPUs."""
    api = pytest.importorskip("torchao.quantization.quant_api", reason='pip install "langevin[quantization]"')
    monkeypatch.setattr(api, "_check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(quantisation, "check_device", lambda kind, weight: None)
    unet.to(torch.bfloat16).requires_grad_(False)
    plain = call(unet, torch.bfloat16)
    names = quantise(unet, kind, skip=("time_emb",))
    linear = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)}
    rounded = {name for name, layer in linear.items() if type(layer.weight.data) is not Tensor}
    assert set(names) == rounded and not any("time_emb" in name for name in names)
    assert len(linear) - len(rounded) == sum("time_emb" in name for name in linear)
    away = (call(unet, torch.bfloat16) - plain).norm() / plain.norm()
    assert least < away < most
    assert KINDS[kind].dynamic == (kind == ROWS)


def test_widths_that_float8_products_do_not_take_are_left(monkeypatch) -> None:
    net = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 32), nn.Linear(32, 16))
    assert [quantisation.fits(layer, KINDS[ROWS]) for layer in net] == [False, False, True]
    assert all(quantisation.fits(layer, KINDS["int8wo"]) for layer in net)
