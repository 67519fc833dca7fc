"""Compiled blocks: one graph for each kind of block, the same results, no graph anew for what a call may change."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.nn.compiled import compiled
from langevin.nn.resnet import ResnetBlock
from langevin.nn.transformer import BasicTransformerBlock
from langevin.optimization import plan, regional
from langevin.picturebook import model_folder
from tests.compiling import Graphs
from tests.models.tiny import noise

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "layers_per_block": 3,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
KINDS = 3
"""Resnet blocks with and without a skip joined to their input, and transformer blocks; of which there are 16 and 7."""


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    torch._dynamo.reset()
    found = Graphs()
    monkeypatch.setattr(regional, "BACKEND", found)
    return found


def unet(**changes: Any) -> langevin.UNet2DConditionModel:
    torch.manual_seed(0)
    return langevin.UNet2DConditionModel(**{**CONFIG, **changes}).eval()


def call(net: torch.nn.Module, side: int = 8, rows: int = 2) -> Tensor:
    with torch.no_grad():
        return net(noise(rows, 4, side, side), 5, noise(rows, 7, 16, seed=1)).sample


def test_every_kind_of_block_is_compiled_once(graphs: Graphs) -> None:
    net = unet()
    wanted = call(net)
    (change,) = [change for change in plan.optimize(net, compile="blocks") if change.what == "compiled blocks"]
    assert compiled(net) and change.network == "UNet2DConditionModel"
    assert torch.allclose(call(net), wanted, atol=1e-6)
    blocks = [type(block) for block in regional.repeated(net)]
    assert blocks.count(ResnetBlock) == 16 and blocks.count(BasicTransformerBlock) == 8
    assert len({regional.kind(block) for block in regional.repeated(net)}) == KINDS
    sizes = 2  # both resnet kinds and the transformers see the larger and the smaller map
    assert graphs.new() <= KINDS * sizes and graphs.runs == len(blocks)
    call(net)
    assert graphs.new() == 0
    found = call(net, side=16)
    assert graphs.new() <= KINDS, "a new size compiles a kind at most once"
    assert torch.equal(call(net, side=16), found) and graphs.new() == 0
    plan.deoptimize(net)
    assert not compiled(net) and torch.equal(call(net), wanted)


def test_more_kinds_than_the_compiler_allows_versions_of_a_function(graphs: Graphs) -> None:
    net = unet(block_out_channels=(8, 16, 24, 32), down_block_types=("DownBlock2D",) * 4,
               up_block_types=("UpBlock2D",) * 4, layers_per_block=2)  # fmt: skip
    wanted = call(net)
    plan.optimize(net, compile="blocks")
    assert len({regional.kind(block) for block in regional.repeated(net)}) > torch._dynamo.config.recompile_limit
    assert torch.allclose(call(net), wanted, atol=1e-6)
    assert graphs.runs == len(regional.repeated(net)), "none is left to be called as it is written"


def test_a_pipeline_with_blocks_compiled(graphs: Graphs) -> None:
    pipe = langevin.DiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 2, "output_type": "np", "seed": 0}
    wanted = pipe("a red house", **given).images
    assert {change.network for change in pipe.optimize(compile="blocks") if change.what == "compiled blocks"} == {
        "unet",
        "vae",
    }
    assert abs(pipe("a red house", **given).images - wanted).max() <= 1e-5
    graphs.new()
    pipe("a blue tree", **{**given, "seed": 3, "guidance_scale": 3.0})
    assert graphs.new() == 0
    pipe.deoptimize()
    assert abs(pipe("a red house", **given).images - wanted).max() == 0


def test_copies_and_files_know_nothing_of_it(graphs: Graphs) -> None:
    net = unet()
    names = list(net.state_dict())
    plan.optimize(net, compile="blocks")
    assert list(net.state_dict()) == names
    again = copy.deepcopy(net)
    assert torch.allclose(call(again), call(net), atol=1e-6)
    torch.save(net.state_dict(), io.BytesIO())


def test_hooks_of_a_block_are_still_called(graphs: Graphs) -> None:
    net = unet()
    plan.optimize(net, compile="blocks")
    block, seen = regional.repeated(net)[0], []
    block.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    call(net)
    assert len(seen) == 1


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(InputError, match="compile is 'block'; did you mean 'blocks'"):
        plan.optimize(unet(), compile="block")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not both"):
        plan.optimize(unet(), compile="blocks", graphs=True)
    with pytest.raises(ConfigError, match="compiled blocks"):
        plan.optimize(torch.nn.Linear(2, 2), compile="blocks")
    net = unet()
    plan.optimize(net, compile=True)
    with pytest.raises(ConfigError, match="that are not compiled yet"):
        plan.optimize(net, compile="blocks")
    assert "compiled" in plan.done(net)
