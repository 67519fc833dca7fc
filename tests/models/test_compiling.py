"""What every network of the registry promises to torch's compiler: one graph without a break, and no more than needed.

A network that is new in the registry needs an entry in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import langevin
from langevin.core.outputs import BaseOutput
from langevin.models.base import ModelMixin
from langevin.registry import MODELS
from tests.adapters import loras
from tests.compiling import Graphs
from tests.models import test_autoencoder_kl, test_autoencoder_tiny, test_t2i_adapter, test_unet_2d, tiny
from tests.models.test_controlnet import TINY as CONTROLNET
from tests.models.test_controlnet import live
from tests.models.tiny import noise

Make = Callable[[], Any]
Give = Callable[[int, int, int], tuple[Any, ...]]


def sample(seed: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return a noisy sample of two rows and a time."""
    return noise(2, 4, height, width, seed=seed), torch.tensor(10 + seed)


def picture(seed: int, height: int, width: int, *, factor: int = 4) -> Tensor:
    """Return a picture `factor` times as large as a sample."""
    return noise(2, 3, factor * height, factor * width, seed=seed).sigmoid()


def controlled(seed: int, height: int, width: int) -> tuple[Any, ...]:
    """Return what a ControlNet is given, another scale for every seed."""
    return (*sample(seed, height, width), noise(2, 7, 32, seed=seed), picture(seed, height, width), scale(seed))


def scale(seed: int) -> Tensor:
    return torch.tensor(1.0 - 0.3 * seed)


def both_pictures(seed: int, height: int, width: int) -> tuple[Any, ...]:
    *given, one, weight = controlled(seed, height, width)
    return (*given, [one, one.flip(2)], [weight, 0.5 * weight])


def controlnet() -> Any:
    small = {"layers_per_block": 1, "conditioning_embedding_out_channels": (4, 8, 8)}
    return live(langevin.ControlNetModel(**{**CONTROLNET, **small}))


def adapter() -> Any:
    return langevin.T2IAdapter(**test_t2i_adapter.TINY)


CASES: dict[str, tuple[Make, Give]] = {
    "AutoencoderKL": (test_autoencoder_kl.tiny, lambda *k: (picture(*k),)),
    "AutoencoderTiny": (
        lambda: langevin.AutoencoderTiny(**test_autoencoder_tiny.SMALL),
        lambda *k: (picture(*k),),
    ),
    "ControlNetModel": (controlnet, controlled),
    "MultiAdapter": (
        lambda: langevin.MultiAdapter([adapter(), adapter()]),
        lambda *k: ([picture(*k), picture(*k).flip(2)],),
    ),
    "MultiControlNetModel": (lambda: langevin.MultiControlNetModel([controlnet(), controlnet()]), both_pictures),
    "T2IAdapter": (adapter, lambda *k: (picture(*k),)),
    "UNet2DConditionModel": (
        lambda: langevin.UNet2DConditionModel(**tiny.TINY),
        lambda *k: (*sample(*k), noise(2, 7, 16, seed=k[0])),
    ),
    "UNet2DModel": (
        lambda: langevin.UNet2DModel(**test_unet_2d.TINY),
        lambda seed, height, width: (noise(2, 3, height, width, seed=seed), torch.tensor(10 + seed)),
    ),
}


def flat(output: Any) -> list[Tensor]:
    """Return the tensors of an output."""
    if isinstance(output, Tensor):
        return [output]
    values = output.to_tuple() if isinstance(output, BaseOutput) else output
    return [tensor for value in values for tensor in flat(value)]


def test_every_network_of_the_registry_is_here() -> None:
    classes = {row.name: getattr(langevin, row.name) for row in MODELS}
    computing = {name for name, cls in classes.items() if cls is not ModelMixin and hasattr(cls, "forward")}
    assert set(CASES) == computing


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_one_graph_whatever_the_values(name: str) -> None:
    """Samples, times, prompts, pictures and scales; sizes are in tests/pipelines/test_compiled.py."""
    make, give = CASES[name]
    torch.manual_seed(0)
    torch._dynamo.reset()
    network, graphs = make().eval(), Graphs()
    compiled = torch.compile(network, backend=graphs, fullgraph=True)
    for seed in range(3):
        given = give(seed, 16, 16)
        pairs = zip(flat(network(*given)), flat(compiled(*given)), strict=True)
        assert all(torch.allclose(wanted, found, atol=1e-5) for wanted, found in pairs)
    assert graphs.count == 1


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
@torch.no_grad()
def test_the_halves_of_an_autoencoder_are_a_graph_each(name: str) -> None:
    torch._dynamo.reset()
    network, graphs, x = CASES[name][0]().eval(), Graphs(), picture(0, 16, 16)

    def latents() -> Tensor:
        encoded = network.encode(x)
        return encoded.latents if name == "AutoencoderTiny" else encoded.latent_dist.mode()

    wanted = latents(), network.decode(latents()).sample
    for half in ("encode", "decode"):
        setattr(network, half, torch.compile(getattr(network, half), backend=graphs, fullgraph=True))
    assert torch.allclose(latents(), wanted[0], atol=1e-5)
    assert torch.allclose(network.decode(latents()).sample, wanted[1], atol=1e-5) and graphs.count == 2


@torch.no_grad()
def test_networks_that_are_compiled_side_by_side_share_no_limit() -> None:
    """torch counts what it compiles by code, and fails beyond a limit."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for name in ("UNet2DConditionModel", "ControlNetModel"):
            make, give = CASES[name]
            torch.compile(make().eval(), backend="eager", fullgraph=True)(*give(0, 8, 8))


@torch.no_grad()
def test_a_controlnet_whose_rows_vary_knows_that_its_pictures_fit() -> None:
    torch._dynamo.reset()
    net, (x, *given) = controlnet().eval(), controlled(0, 8, 8)
    torch._dynamo.maybe_mark_dynamic(x, 0)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert all(
        torch.allclose(*pair, atol=1e-6) for pair in zip(flat(net(x, *given)), flat(compiled(x, *given)), strict=True)
    )


@torch.no_grad()
def test_a_scale_as_a_tensor_is_the_number() -> None:
    net, given = controlnet().eval().to(torch.bfloat16), list(controlled(0, 8, 8)[:4])
    given = [value.bfloat16() if value.is_floating_point() else value for value in given]
    number, tensor = (flat(net(*given, scale)) for scale in (0.7, torch.tensor(0.7)))
    assert all(map(torch.equal, number, tensor)) and number[0].dtype == torch.bfloat16


@pytest.mark.slow
@torch.no_grad()
def test_a_call_that_scales_adapters_is_one_graph_and_another_for_all_other_scales() -> None:
    torch._dynamo.reset()
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    small = {**tiny.TINY, **blocks, "block_out_channels": (32,), "mid_block_type": None}
    network, graphs = langevin.UNet2DConditionModel(**small).eval(), Graphs()
    given = CASES["UNet2DConditionModel"][1](0, 8, 8)
    network.load_lora_adapter(loras.diffusers({"unet": loras.halves(network)}))
    before = {name: scale for name, scale in network.named_buffers() if name.endswith(".scale")}
    compiled, new = torch.compile(network, backend=graphs, fullgraph=True), []
    for factor in (0.5, 0.3, 1.0):
        how = {"cross_attention_kwargs": {"scale": factor}}
        assert torch.allclose(compiled(*given, **how).sample, network(*given, **how).sample, atol=1e-6)
        new.append(graphs.new())
    assert new[0] == 1 and new[1] <= 1 and new[2] == 0
    assert not torch.allclose(compiled(*given).sample, compiled(*given, cross_attention_kwargs={"scale": 0.0}).sample)
    after = dict(network.named_buffers())
    assert before and all(after[name] is scale for name, scale in before.items())
    network.fuse_lora()
    with pytest.raises(Exception, match="fused with fixed weights"):
        compiled(*given, cross_attention_kwargs={"scale": 0.7})
