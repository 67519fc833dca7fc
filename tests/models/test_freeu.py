"""FreeU: the formula of its paper, the peer's numbers, and nothing left afterwards."""

from __future__ import annotations

import diffusers
import pytest
import torch

import langevin
from langevin.core.errors import InputError
from langevin.nn.freeu import FreeU, low_frequencies
from tests.pipelines import tiny

FACTORS = {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}


@pytest.fixture(scope="module")
def twins():
    torch.manual_seed(0)
    peer = diffusers.UNet2DConditionModel(**tiny.UNET).eval()
    ours = langevin.UNet2DConditionModel(**tiny.UNET).eval()
    ours.load_state_dict(peer.state_dict())
    return peer, ours


@pytest.mark.parametrize("size", [(8, 8), (12, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_peers_numbers(twins, size, dtype):
    peer, ours = (net.to(dtype) for net in twins)
    torch.manual_seed(1)
    given = (torch.randn(2, 4, *size).to(dtype), 10, torch.randn(2, 7, tiny.WIDTH).to(dtype))
    plain = ours(*given).sample
    for net in (peer, ours):
        net.enable_freeu(**FACTORS)
    made, wanted = ours(*given).sample, peer(*given).sample
    for net in (peer, ours):
        net.disable_freeu()
    assert torch.allclose(made.float(), wanted.float(), atol=1e-5 if dtype == torch.float32 else 3e-2)
    assert not torch.allclose(made, plain)
    assert torch.equal(ours(*given).sample, plain)
    for net in (peer, ours):
        net.float()


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 4)])
def test_the_mean_is_scaled_and_high_frequencies_are_not(size):
    height, width = size
    flat = torch.full((1, 1, height, width), 3.0)
    assert torch.allclose(low_frequencies(flat, 0.25), 0.25 * flat, atol=1e-6)
    across = torch.cos(2 * torch.pi * (width // 2) * torch.arange(width) / width).expand(1, 1, height, width)
    assert torch.allclose(low_frequencies(across, 0.25), across, atol=1e-5)
    assert torch.allclose(low_frequencies(flat + across, 1.0), flat + across, atol=1e-5)


def test_half_of_the_backbone(twins):
    x, kept = FreeU(2.0, 1.0)(torch.ones(1, 5, 4, 4), torch.ones(1, 3, 4, 4))
    assert x[0, :, 0, 0].tolist() == [2, 2, 1, 1, 1]
    assert torch.allclose(kept, torch.ones(1, 3, 4, 4))


def test_one_graph_with_it(twins):
    ours = twins[1]
    ours.enable_freeu(**FACTORS)
    given = (torch.randn(2, 4, 8, 8), 10, torch.randn(2, 7, tiny.WIDTH))
    with torch.no_grad():
        made = torch.compile(ours, backend="eager", fullgraph=True)(*given).sample
        assert torch.allclose(made, ours(*given).sample, atol=1e-6)
    ours.disable_freeu()


@pytest.mark.parametrize("value", ["1", -0.1, float("inf"), None, True])
def test_factors_are_numbers(twins, value):
    with pytest.raises(InputError, match="FreeU"):
        twins[1].enable_freeu(**{**FACTORS, "b2": value})
    assert all(block.freeu is None for block in twins[1].up_blocks)


def test_of_a_pipeline(pipe_of_tests):
    call = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np", "seed": 0}
    plain = pipe_of_tests(**call).images
    pipe_of_tests.enable_freeu(**FACTORS)
    assert abs(pipe_of_tests(**call).images - plain).max() > 1e-3
    pipe_of_tests.disable_freeu()
    assert (pipe_of_tests(**call).images == plain).all()


@pytest.fixture
def pipe_of_tests():
    from langevin.picturebook import model_folder

    pipe = langevin.StableDiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe
