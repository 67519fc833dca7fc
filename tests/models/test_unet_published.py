"""Names and shapes of the parameters of published UNets, built on the meta device."""

from __future__ import annotations

import pytest
import torch

from langevin.models.unets.unet_2d import UNet2DModel
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from tests.data.published_configs import CONDITIONAL, UNCONDITIONAL

diffusers = pytest.importorskip("diffusers")


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


@pytest.mark.parametrize(("name", "millions"), [("sd-1.5", 859.52), ("sdxl-base", 2567.46), ("sdxl-refiner", 2257.0)])
def test_parameter_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(**CONDITIONAL[name])
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 10
