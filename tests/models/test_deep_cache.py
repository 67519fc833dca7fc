"""Deep features of a UNet: a pass that reuses those of the same input gives the same bits, and computes less."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from tests.models.test_unet_2d_condition import FAMILIES, K_BLOCKS, TINY, inputs, noise

DEEP: dict[str, Any] = {
    **TINY,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": (1, 2, 1),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
}
CONFIGS = {
    "three-levels": (DEEP, FAMILIES["sd1"][1]),
    **{name: FAMILIES[name] for name in ("sd1-odd-size", "sdxl", "if-II")},
}


def made(name: str) -> tuple[UNet2DConditionModel, dict[str, Any], int]:
    torch.manual_seed(0)
    config, given = CONFIGS[name]
    model = UNet2DConditionModel(**config).eval()
    return model, inputs(config, given), sum(len(block.resnets) for block in model.up_blocks)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_same_input_gives_the_same_bits(name: str) -> None:
    model, given, count = made(name)
    plain = model(**given).sample
    for layers in range(1, count):
        deep = model.new_deep_features(layers)
        assert torch.equal(model(**given, deep_features=deep).sample, plain)
        assert torch.equal(model(**given, deep_features=deep).sample, plain)


@torch.no_grad()
def test_residuals_of_controls_enter_where_they_did() -> None:
    model, given, count = made("three-levels")
    kept: list[torch.Tensor] = []
    model.conv_in.register_forward_hook(lambda m, args, out: kept.append(out))
    for block in model.down_blocks:
        block.register_forward_hook(lambda m, args, out: kept.extend(out[1]))
    model(**given)
    inside = [noise(*out.shape) for out in (kept[1], kept[5], kept[6])]
    residuals = {
        "down_block_additional_residuals": tuple(noise(*one.shape) for one in kept),
        "mid_block_additional_residual": noise(*kept[-1].shape),
        "down_intrablock_additional_residuals": tuple(inside),
    }
    plain = model(**given, **residuals).sample
    assert not torch.allclose(plain, model(**given).sample, atol=1e-3)
    for layers in range(1, count):
        deep = model.new_deep_features(layers)
        for _ in range(2):
            assert torch.equal(model(**given, **residuals, deep_features=deep).sample, plain)


@torch.no_grad()
def test_deep_blocks_are_left_out_and_shallow_ones_follow_the_sample() -> None:
    model, given, count = made("three-levels")
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.rpartition(".")[0].endswith("resnets"):
            module.register_forward_hook(lambda m, args, out, name=name: calls.append(name))
    deep = model.new_deep_features(3)
    model(**given, deep_features=deep)
    whole, calls[:] = list(calls), []
    other = model(**{**given, "sample": given["sample"] + 1}, deep_features=deep).sample
    assert calls == [
        "down_blocks.0.resnets.0",
        "up_blocks.1.resnets.2",
        "up_blocks.2.resnets.0",
        "up_blocks.2.resnets.1",
    ]
    assert len(whole) == count + 4 + 2
    assert not torch.allclose(other, model(**given).sample, atol=1e-3)
    deep.kept = None
    calls.clear()
    model(**given, deep_features=deep)
    assert calls == whole


def test_two_graphs_whatever_the_step() -> None:
    model = UNet2DConditionModel(**{**TINY, "layers_per_block": 1}).eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for step in range(6):
            if step % 3 == 0:
                deep, alone = model.new_deep_features(2), model.new_deep_features(2)
            given = (noise(2, 4, 8, 8), torch.tensor(100.0 - step), FAMILIES["sd1"][1]["encoder_hidden_states"])
            pictures = compiled(*given, deep_features=deep).sample, model(*given, deep_features=alone).sample
            assert torch.allclose(*pictures, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_what_cannot_be_is_said() -> None:
    model, _, count = made("three-levels")
    for layers in (0, count, 1.5, True):
        with pytest.raises(InputError, match="layers"):
            model.new_deep_features(layers)
    with pytest.raises(ConfigError, match="KUpBlock"):
        UNet2DConditionModel(**K_BLOCKS).new_deep_features()
