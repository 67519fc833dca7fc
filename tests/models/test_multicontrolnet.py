"""MultiControlNetModel: the sum of its parts, and its folders."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.models.controlnets.controlnet import ControlNetModel, ControlNetOutput
from langevin.models.controlnets.multicontrolnet import MultiControlNetModel
from tests.models.pairs import difference
from tests.models.test_controlnet import TINY, flat, inputs, live, live_pair, noise

TWO = {"controlnet_cond": [noise(2, 3, 128, 128).sigmoid() for _ in range(2)], "conditioning_scale": [0.7, 1.2]}


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return importlib.import_module("diffusers")


@pytest.fixture
def several() -> MultiControlNetModel:
    torch.manual_seed(0)
    return MultiControlNetModel([live(ControlNetModel(**TINY)) for _ in range(2)]).eval()


@pytest.mark.parity
@pytest.mark.parametrize("guess_mode", [False, True])
def test_sum(guess_mode: bool, diffusers: Any) -> None:
    pairs = [live_pair(diffusers.ControlNetModel, TINY) for _ in range(2)]
    theirs = diffusers.MultiControlNetModel([a for a, _ in pairs])
    ours = MultiControlNetModel([b for _, b in pairs])
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    given = {**inputs(TINY, TWO), "guess_mode": guess_mode}
    with torch.no_grad():
        down, mid = theirs(**given, return_dict=False)
        found = flat(ours(**given))
    assert max(difference(a, b) for a, b in zip([*down, mid], found, strict=True)) <= 1e-5


def test_return_dict(several: MultiControlNetModel) -> None:
    given = inputs(TINY, TWO)
    out = several(**given)
    assert isinstance(out, ControlNetOutput)
    down, mid = several(**given, return_dict=False)
    assert torch.equal(mid, out.mid_block_res_sample)
    assert torch.equal(down[0], out.down_block_res_samples[0])


@pytest.mark.parity
def test_lists_shorter_than_the_networks(several: MultiControlNetModel, diffusers: Any) -> None:
    theirs = diffusers.MultiControlNetModel([diffusers.ControlNetModel(**TINY) for _ in range(2)])
    given = {**inputs(TINY, TWO), "controlnet_cond": TWO["controlnet_cond"][:1]}
    theirs(**given)
    with pytest.raises(InputError, match="`controlnet_cond` has 1 values for 2"):
        several(**given)


@pytest.mark.parity
def test_return_dict_and_longer_lists_saved_earlier(
    several: MultiControlNetModel, tmp_path: Path, diffusers: Any
) -> None:
    theirs = diffusers.MultiControlNetModel([diffusers.ControlNetModel(**TINY) for _ in range(2)])
    given = inputs(TINY, TWO)
    assert isinstance(theirs(**given), tuple)
    assert isinstance(several(**given), ControlNetOutput)
    theirs.save_pretrained(str(tmp_path / "controlnet"))
    shorter = diffusers.MultiControlNetModel([theirs.nets[0]])
    shorter.save_pretrained(str(tmp_path / "controlnet"))
    assert len(diffusers.MultiControlNetModel.from_pretrained(str(tmp_path / "controlnet")).nets) == 2
    with pytest.raises(InputError, match="controlnet_1 belongs to a longer list"):
        MultiControlNetModel([several.nets[0]]).save_pretrained(tmp_path / "controlnet")


def test_one_scale_for_all(several: MultiControlNetModel) -> None:
    given = inputs(TINY, TWO)
    a = several(**{**given, "conditioning_scale": 0.5}).mid_block_res_sample
    assert torch.equal(a, several(**{**given, "conditioning_scale": [0.5, 0.5]}).mid_block_res_sample)


@pytest.mark.parity
def test_folders(several: MultiControlNetModel, tmp_path: Path, diffusers: Any) -> None:
    several.save_pretrained(tmp_path / "controlnet", variant="fp16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["controlnet", "controlnet_1"]
    given = inputs(TINY, TWO)
    again = MultiControlNetModel.from_pretrained(tmp_path / "controlnet", variant="fp16")
    theirs = diffusers.MultiControlNetModel.from_pretrained(str(tmp_path / "controlnet"), variant="fp16")
    with torch.no_grad():
        expected = several(**given).mid_block_res_sample
        assert difference(expected, again(**given).mid_block_res_sample) <= 1e-6
        assert difference(theirs(**given, return_dict=False)[1], expected) <= 1e-5
    half = MultiControlNetModel.from_pretrained(tmp_path / "controlnet", variant="fp16", torch_dtype=torch.float16)
    assert half.dtype == torch.float16


def test_saving_twice(several: MultiControlNetModel, tmp_path: Path) -> None:
    several.save_pretrained(tmp_path / "controlnet")
    several.save_pretrained(tmp_path / "controlnet")


def test_switches_reach_every_part(several: MultiControlNetModel) -> None:
    several.enable_gradient_checkpointing()
    assert all(net.is_gradient_checkpointing for net in several.nets)
    several.set_attention_backend("eager")
    assert len(several.attn_processors) == 2 * len(several.nets[0].attn_processors)


def test_compiles_as_one_graph(several: MultiControlNetModel) -> None:
    given = inputs(TINY, TWO)
    torch._dynamo.reset()
    compiled = torch.compile(several, backend="eager", fullgraph=True)
    with torch.no_grad():
        pairs = zip(flat(several(**given)), flat(compiled(**given)), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_wrong_lists(several: MultiControlNetModel) -> None:
    given = inputs(TINY, TWO)
    with pytest.raises(InputError, match="`conditioning_scale` has 3 values for 2"):
        several(**{**given, "conditioning_scale": [1.0] * 3})
    with pytest.raises(ConfigError, match="at least one"):
        MultiControlNetModel([])
    with pytest.raises(ConfigError, match="entry 0 is Linear"):
        MultiControlNetModel([torch.nn.Linear(1, 1)])
    with pytest.raises(InputError, match="nowhere"):
        MultiControlNetModel.from_pretrained("nowhere")
