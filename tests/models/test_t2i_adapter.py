"""T2IAdapter and MultiAdapter against the peer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.models.t2i_adapters.t2i_adapter import MultiAdapter, T2IAdapter
from langevin.models.unets.unet_2d_condition import UNet2DConditionModel
from tests.models.pairs import difference, pair

TOLERANCE = 1e-5
TINY: dict[str, Any] = {"channels": [8, 16, 24, 24]}
KINDS: dict[str, dict[str, Any]] = {
    "full": TINY,
    "full-grey": {**TINY, "in_channels": 1, "num_res_blocks": 1},
    "full-three": {"channels": [8, 16, 16], "downscale_factor": 4},
    "light": {"channels": [8, 16, 24], "adapter_type": "light_adapter"},
    "light-four": {**TINY, "adapter_type": "light_adapter", "num_res_blocks": 4},
    "xl": {**TINY, "adapter_type": "full_adapter_xl", "downscale_factor": 16},
}
DRAW = torch.Generator().manual_seed(13)


def picture(config: dict[str, Any], height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, config.get("in_channels", 3), height, width, generator=DRAW)


def largest(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    assert [x.shape for x in expected] == [x.shape for x in found]
    return max(difference(a, b) for a, b in zip(expected, found, strict=True))


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return importlib.import_module("diffusers")


@pytest.mark.parity
@pytest.mark.parametrize("size", [(64, 96), (80, 112), (16, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind: str, size: tuple[int, int], diffusers: Any) -> None:
    theirs, ours = pair(diffusers.T2IAdapter, T2IAdapter, KINDS[kind])
    assert theirs.total_downscale_factor == ours.total_downscale_factor
    assert theirs.downscale_factor == ours.downscale_factor
    x = picture(KINDS[kind], *size)
    with torch.no_grad():
        assert largest(theirs(x), ours(x)) <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["full", "light"])
def test_gradients(kind: str, checkpointing: bool, diffusers: Any) -> None:
    theirs, ours = pair(diffusers.T2IAdapter, T2IAdapter, KINDS[kind])
    if checkpointing:
        ours.enable_gradient_checkpointing()
    x = picture(KINDS[kind])
    for model in (theirs, ours):
        sum(y.square().mean() for y in model(x)).backward()
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        assert difference(expected[name].grad, value.grad) <= TOLERANCE, name


@pytest.mark.parity
@pytest.mark.parametrize("weights", [None, [0.3, 0.9], [0.0, 1.0]])
@pytest.mark.parametrize("kind", ["full", "light", "xl"])
def test_several(kind: str, weights: list[float] | None, diffusers: Any) -> None:
    pairs = [pair(diffusers.T2IAdapter, T2IAdapter, KINDS[kind]) for _ in range(2)]
    for theirs, ours in pairs[1:]:
        with torch.no_grad():
            for value in theirs.parameters():
                value.mul_(0.9)
        ours.load_state_dict(theirs.state_dict())
    theirs, ours = diffusers.MultiAdapter([a for a, _ in pairs]), MultiAdapter([b for _, b in pairs])
    assert (ours.num_adapter, ours.total_downscale_factor, ours.downscale_factor) == (
        theirs.num_adapter,
        theirs.total_downscale_factor,
        theirs.downscale_factor,
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    xs = [picture(KINDS[kind]) for _ in range(2)]
    with torch.no_grad():
        assert largest(theirs(xs, weights), ours(xs, weights)) <= TOLERANCE
        assert largest(ours(xs, weights), ours(torch.stack(xs), weights)) <= 1e-6


@pytest.mark.parity
def test_folders_of_several(tmp_path: Path, diffusers: Any) -> None:
    ours = MultiAdapter([T2IAdapter(**TINY) for _ in range(3)])
    ours.save_pretrained(tmp_path / "adapter")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "adapter_1", "adapter_2"]
    again = MultiAdapter.from_pretrained(tmp_path / "adapter")
    theirs = diffusers.MultiAdapter.from_pretrained(str(tmp_path / "adapter"))
    xs = [picture(TINY) for _ in range(3)]
    with torch.no_grad():
        assert largest(ours(xs), again(xs)) <= 1e-6
        assert largest(theirs(xs), ours(xs)) <= TOLERANCE
    with pytest.raises(InputError, match="adapter_2 belongs to a longer list"):
        MultiAdapter(list(ours.adapters)[:2]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="nowhere"):
        MultiAdapter.from_pretrained(tmp_path / "nowhere")


def test_round_trip(tmp_path: Path) -> None:
    for kind, config in KINDS.items():
        model = T2IAdapter(**config).eval()
        model.save_pretrained(tmp_path / kind)
        x = picture(config)
        assert largest(model(x), T2IAdapter.from_pretrained(tmp_path / kind)(x)) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph(kind: str) -> None:
    model = T2IAdapter(**KINDS[kind]).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = picture(KINDS[kind])
    with torch.no_grad():
        assert largest(model(x), compiled(x)) <= 1e-6


def test_feature_maps_fit_the_unet() -> None:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)}
    unet = UNet2DConditionModel(
        **blocks, block_out_channels=(8, 16, 24, 24), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2
    ).eval()
    maps = T2IAdapter(**TINY).eval()(picture(TINY, 64, 64))
    given = (torch.randn(2, 4, 8, 8, generator=DRAW), 5, torch.randn(2, 3, 8, generator=DRAW))
    with torch.no_grad():
        led = unet(*given, down_intrablock_additional_residuals=maps).sample
        assert difference(unet(*given).sample, led) > 1e-4


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match="'light_adapter'"):
        T2IAdapter(adapter_type="ligth_adapter")
    with pytest.raises(ConfigError, match="channels"):
        T2IAdapter(channels=[])
    with pytest.raises(ConfigError, match=r"\[64, 128\]"):
        MultiAdapter([T2IAdapter(**TINY), T2IAdapter(**TINY, downscale_factor=16)])
    with pytest.raises(ConfigError, match="at least one T2IAdapter"):
        MultiAdapter([])
    with pytest.raises(ConfigError, match="entry 1 is Linear"):
        MultiAdapter([T2IAdapter(**TINY), torch.nn.Linear(1, 1)])


def test_wrong_inputs() -> None:
    model = T2IAdapter(**TINY)
    with pytest.raises(InputError, match="in_channels"):
        model(torch.rand(1, 1, 64, 64))
    with pytest.raises(InputError, match=r"\(61, 67\).*multiples of 8, such as \(64, 64\)"):
        model(torch.rand(1, 3, 61, 67))
    both = MultiAdapter([model, T2IAdapter(**TINY)])
    with pytest.raises(InputError, match="`xs` has 1 values for 2"):
        both([picture(TINY)])
    with pytest.raises(InputError, match="`adapter_weights` has 3 values for 2"):
        both([picture(TINY)] * 2, [1.0, 1.0, 1.0])


def test_builds_without_arguments() -> None:
    with torch.device("meta"):
        model = T2IAdapter()
    assert model.total_downscale_factor == 64
