"""Names and shapes of the parameters of published UNets, ControlNets and T2I-Adapters, built on the meta device."""

from __future__ import annotations

import importlib

import pytest
import torch

from langevin.models.controlnets.controlnet import ControlNetModel
from langevin.models.t2i_adapters.t2i_adapter import T2IAdapter
from langevin.models.unets.unet_2d import UNet2DModel
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from tests.data.published_configs import CONDITIONAL, CONTROLNETS, T2I_ADAPTERS, UNCONDITIONAL

diffusers = importlib.import_module("diffusers")


def shapes(cls: type, config: dict) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in cls(**config).state_dict().items()}


@pytest.mark.parity
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_names_and_shapes(name: str) -> None:
    config = CONDITIONAL[name]
    assert shapes(UNet2DConditionModel, config) == shapes(diffusers.UNet2DConditionModel, config)


@pytest.mark.parity
@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional_names_and_shapes(name: str) -> None:
    config = UNCONDITIONAL[name]
    assert shapes(UNet2DModel, config) == shapes(diffusers.UNet2DModel, config)


@pytest.mark.parity
@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnet_names_and_shapes(name: str) -> None:
    config = CONTROLNETS[name]
    assert shapes(ControlNetModel, config) == shapes(diffusers.ControlNetModel, config)


@pytest.mark.parity
@pytest.mark.parametrize("name", T2I_ADAPTERS)
def test_adapter_names_and_shapes(name: str) -> None:
    config = T2I_ADAPTERS[name]
    assert shapes(T2IAdapter, config) == shapes(diffusers.T2IAdapter, config)


@pytest.mark.parametrize(
    ("cls", "config", "millions"),
    [
        (ControlNetModel, CONTROLNETS["sd-controlnet-canny"], 361.28),
        (ControlNetModel, CONTROLNETS["controlnet-canny-sdxl-1.0"], 1251.2),
        (T2IAdapter, T2I_ADAPTERS["t2iadapter-seg-sd14v1"], 77.4),
        (T2IAdapter, T2I_ADAPTERS["t2i-adapter-canny-sdxl-1.0"], 79.0),
    ],
)
def test_parameter_counts_of_controls(cls: type, config: dict, millions: float) -> None:
    with torch.device("meta"):
        model = cls(**config)
    assert abs(model.num_parameters() / 1e6 - millions) < 1


@pytest.mark.parametrize(("name", "millions"), [("sd-1.5", 859.52), ("sdxl-base", 2567.46), ("sdxl-refiner", 2257.0)])
def test_parameter_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(**CONDITIONAL[name])
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 10
