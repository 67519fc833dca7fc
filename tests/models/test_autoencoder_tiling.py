"""Tiles that share the statistics of the norms: equal to the whole, without seams, in less memory."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from langevin import AutoencoderKL, AutoencoderTiny
from langevin.core.errors import InputError
from langevin.models.autoencoders.strips import decode_in_strips
from langevin.picturebook import model_folder
from langevin.picturebook.world import render, sample_scene
from tests.live_bytes import LiveBytes
from tests.models.pairs import shake

STAGES = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
PLAIN = {**STAGES, "block_out_channels": [16, 32, 64, 64], "norm_num_groups": 8, "layers_per_block": 2}
ATTENTION = {
    **PLAIN,
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
}
NO_MIDDLE = {**PLAIN, "mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False}
RANDOM = {"plain": PLAIN, "attention in the stages": ATTENTION, "no attention": NO_MIDDLE}


@cache
def picturebook() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(model_folder(), subfolder="vae")


def random(config: dict, sample_size: int = 64) -> AutoencoderKL:
    """Return a network of the usual four stages, narrow, whose norms and biases are not those of a fresh one."""
    torch.manual_seed(0)
    model = AutoencoderKL(**config, sample_size=sample_size).eval()
    shake(model)
    return model


def scenes(height: int, width: int, side: int) -> Tensor:
    """Return picturebook scenes side by side, (1, 3, height, width) in [-1, 1]."""
    draw = np.random.default_rng(0)
    rows = [[render(sample_scene(draw), side) for _ in range(width // side)] for _ in range(height // side)]
    picture = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    return torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1


def gradient(height: int, width: int) -> Tensor:
    """Return a smooth change of colour over the whole picture, (1, 3, height, width) in [-1, 1]."""
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return torch.stack([x.expand(height, -1), y.expand(-1, width), -(x + y) / 2])[None]


PICTURES = {
    "scenes": scenes(256, 256, 128),
    "wide scenes": scenes(192, 320, 64),
    "one scene": scenes(320, 320, 320),
    "gradient": gradient(256, 256),
    "wide gradient": gradient(192, 340),
}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def steps(x: Tensor, dim: int) -> Tensor:
    """Return the mean step from each row (dim -2) or column (dim -1) of a picture to the next, in levels of 0-255."""
    return (127.5 * x.clamp(-1, 1)).diff(dim=dim).abs().movedim(dim, 0).flatten(1).mean(1)


def seam(tiled: Tensor, whole: Tensor) -> float:
    """Return the largest change that tiles make to the mean step of any row or column, in levels of 0-255."""
    return max(float((steps(tiled, dim) - steps(whole, dim)).abs().max()) for dim in (-2, -1))


@pytest.mark.parametrize("name", PICTURES)
@torch.no_grad()
def test_the_picturebook_is_decoded_without_seams(name: str) -> None:
    model, x = picturebook(), PICTURES[name]
    latents = model.encode(x).latent_dist.mean
    whole = model.decode(latents).sample
    model.enable_tiling()
    try:
        assert model.tile_statistics == "shared" and max(latents.shape[-2:]) > model.tile_latent_min_size
        tiled = model.decode(latents).sample
        assert relative(tiled, whole) < 1e-5, "the promise is 1e-3; strips differ by rounding only"
        assert seam(tiled, whole) < 0.01
        assert relative(model.encode(x).latent_dist.mean, latents) < 1e-5
        model.enable_tiling(statistics="tile")
        separate = model.decode(latents).sample
        assert relative(separate, whole) > 0.05 and seam(separate, whole) > 0.3, "what the measures are there to find"
    finally:
        model.enable_tiling(statistics="shared")
        model.disable_tiling()


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("size", [(16, 16), (9, 21), (31, 10), (33, 2)])
@torch.no_grad()
def test_random_weights(size: tuple[int, int], name: str) -> None:
    model = random(RANDOM[name])
    z, x = torch.randn(2, 4, *size), torch.randn(2, 3, 8 * size[0] + 5, 8 * size[1] + 3)
    whole, latents = model.decode(z).sample, model.encode(x).latent_dist
    model.enable_tiling()
    assert relative(model.decode(z).sample, whole) < 1e-5
    tiled = model.encode(x).latent_dist
    assert relative(tiled.mean, latents.mean) < 1e-5 and relative(tiled.logvar, latents.logvar) < 1e-5
    model.enable_slicing()
    torch.testing.assert_close(model.decode(z).sample, whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_half_precision_is_as_exact_as_the_whole() -> None:
    model, z = random(PLAIN), torch.randn(1, 4, 16, 24)
    exact = model.decode(z).sample
    model.to(torch.bfloat16)
    whole = model.decode(z.bfloat16()).sample
    model.enable_tiling()
    tiled = model.decode(z.bfloat16()).sample
    assert tiled.dtype == torch.bfloat16
    assert relative(tiled.float(), exact) < 1.2 * relative(whole.float(), exact)


@torch.no_grad()
def test_memory_falls() -> None:
    model = random(PLAIN, sample_size=128)
    z, x = torch.randn(1, 4, 48, 48), torch.randn(1, 3, 384, 384)
    for whole, tiled, given in (
        (model.decode_whole, model.decode_tiles, z),
        (model.encode_whole, model.encode_tiles, x),
    ):
        with LiveBytes() as all_at_once:
            whole(given)
        with LiveBytes() as in_strips:
            tiled(given)
        # The whole adds in place and drops the first map of a stage, which took a third off what it holds at once.
        assert in_strips.peak < 0.85 * all_at_once.peak


@pytest.mark.parametrize(("name", "part"), [("no attention", 0.6), ("attention in the stages", 1.0)])
@torch.no_grad()
def test_strips_may_wait_on_the_host(name: str, part: float) -> None:
    """On tensors without values, which refuse to mix devices and need no accelerator; attention there is not fused."""
    peaks = {}
    with torch.device("meta"):
        model = AutoencoderKL(**RANDOM[name], sample_size=128).eval()
    with FakeTensorMode():
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(value.shape, device="cuda:0")))
        z, x = torch.empty(1, 4, 48, 48, device="cuda:0"), torch.empty(1, 3, 384, 384, device="cuda")
        for network, given, shape in ((model.decode_tiles, z, x.shape), (model.encode_tiles, x, (1, 8, 48, 48))):
            for place in (None, "cpu"):
                model.enable_tiling(storage=place)
                with LiveBytes("cuda") as peaks[place]:
                    result = network(given)
                assert result.device.type == "cuda" and result.shape == shape
            assert peaks["cpu"].peak <= part * peaks[None].peak
            model.tile_storage = None


def test_gradients_are_those_of_the_whole() -> None:
    model, z = random(PLAIN), torch.randn(1, 4, 12, 12)
    weight = torch.randn(1, 3, 96, 96)
    gradients = []
    for tiled in (False, True):
        model.enable_tiling(tiled)
        given = z.clone().requires_grad_()
        gradients += torch.autograd.grad((model.decode(given).sample * weight).sum(), given)
    assert relative(gradients[1], gradients[0]) < 1e-4


@torch.no_grad()
def test_layers_are_called_as_modules() -> None:
    """Whatever is attached to a convolution, such as an adapter, also acts on strips."""
    model, z = random(PLAIN), torch.randn(1, 4, 12, 12)
    plain = model.decode(z).sample
    for layer in (model.decoder.up_blocks[1].resnets[0].conv2, model.decoder.up_blocks[0].upsamplers[0].conv):
        layer.register_forward_hook(lambda module, given, result: 2 * result)
    whole = model.decode(z).sample
    assert relative(whole, plain) > 0.01
    assert relative(decode_in_strips(model.decoder, model.unquantised(z), 4), whole) < 1e-5


@torch.no_grad()
def test_a_larger_tile_leaves_the_picture_whole() -> None:
    model = random(PLAIN)
    model.enable_tiling(tile_sample_min_size=256)
    z = torch.randn(1, 4, 24, 24)
    assert torch.equal(model.decode(z).sample, model.decode_whole(z))
    assert model.strip_rows(32) == 4 and model.strip_rows(16) == 8


def test_options_without_effect_are_refused() -> None:
    model = random(PLAIN)
    with pytest.raises(InputError, match='ramp has no effect with statistics="shared"; it belongs to "tile"'):
        model.enable_tiling(ramp="cosine")
    with pytest.raises(InputError, match="tile_overlap_factor has no effect"):
        model.enable_tiling(tile_overlap_factor=0.5, statistics="shared")
    with pytest.raises(InputError, match='storage has no effect with statistics="tile"; it belongs to "shared"'):
        model.enable_tiling(statistics="tile", storage="cpu")
    with pytest.raises(InputError, match=r"statistics is 'share'.*did you mean 'shared'"):
        model.enable_tiling(statistics="share")
    with pytest.raises(InputError, match="below one latent pixel"):
        model.enable_tiling(statistics="tile", tile_sample_min_size=4)
    assert model.tile_statistics == "shared" and not model.use_tiling, "a refused call changes nothing"
    model.enable_tiling(statistics="tile", ramp="cosine", tile_overlap_factor=0.5)
    model.enable_tiling()
    assert (model.tile_statistics, model.tile_ramp, model.tile_overlap_factor) == ("tile", "cosine", 0.5)


def test_a_network_without_norms_has_none_to_share() -> None:
    model = AutoencoderTiny()
    assert model.tile_statistics == "tile"
    with pytest.raises(InputError, match="statistics is 'shared'; valid: tile"):
        model.enable_tiling(statistics="shared")
