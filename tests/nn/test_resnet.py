"""Residual blocks and resampling layers: arithmetic, names, and agreement with the peer."""

from __future__ import annotations

import importlib

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.nn.activation import activation
from langevin.nn.norm import AdaGroupNorm
from langevin.nn.resnet import Downsample, FirResample, ResnetBlock, Upsample

OPTIONS = {
    "plain": {},
    "wider": {"out_channels": 64},
    "scale_shift": {"time_embedding_norm": "scale_shift", "out_channels": 64},
    "no_time": {"time_channels": None},
    "up": {"up": True},
    "down": {"down": True},
    "fir_up": {"up": True, "fir": True},
    "fir_down": {"down": True, "fir": True},
    "scaled": {"output_scale_factor": 2.0**0.5, "eps": 1e-3, "act": "mish"},
    "skip_time_act": {"skip_time_act": True, "groups": 16, "groups_out": 8, "out_channels": 48},
    "shortcut": {"conv_shortcut": True},
}
PEER_NAMES = {
    "time_channels": "temb_channels",
    "act": "non_linearity",
    "conv_shortcut": "use_in_shortcut",
}


@pytest.mark.parity
@pytest.mark.parametrize("name", OPTIONS)
def test_block_agrees_with_the_peer(name: str) -> None:
    from diffusers.models.resnet import ResnetBlock2D

    options = {"time_channels": 24, **OPTIONS[name]}
    torch.manual_seed(0)
    named = {PEER_NAMES.get(k, k): v for k, v in options.items() if k != "fir"}
    theirs = ResnetBlock2D(in_channels=32, **named, kernel="fir" if "fir" in options else None).eval()
    ours = ResnetBlock(32, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 8, 12)
    time = torch.randn(2, 24) if options["time_channels"] else None
    torch.testing.assert_close(ours(x, time), theirs(x, time), atol=1e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("options", [{}, {"use_conv": True}])
def test_upsample_agrees_with_the_peer(options: dict) -> None:
    from diffusers.models.upsampling import Upsample2D

    theirs, ours = Upsample2D(4, **options), Upsample(4, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours(x, (9, 13)), theirs(x, (9, 13)), atol=1e-6, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("options", [{}, {"use_conv": True}, {"use_conv": True, "padding": 0}])
def test_downsample_agrees_with_the_peer(options: dict) -> None:
    from diffusers.models.downsampling import Downsample2D

    theirs, ours = Downsample2D(4, **options, name="op"), Downsample(4, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 8, 7)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)


def test_channels_last_gives_the_same() -> None:
    block = ResnetBlock(32, 64, time_channels=8).eval()
    x, time = torch.randn(2, 32, 8, 8), torch.randn(2, 8)
    fast = block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), time)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast, block.to(memory_format=torch.contiguous_format)(x, time), atol=1e-5, rtol=0)


def test_the_filter_keeps_a_constant_inside() -> None:
    x = torch.full((1, 2, 8, 8), 3.0)
    for up in (True, False):
        assert torch.allclose(FirResample(up=up)(x)[..., 1:-1, 1:-1], torch.tensor(3.0))


@pytest.mark.parity
@pytest.mark.parametrize("up", [False, True])
def test_the_reflecting_filter_agrees_with_the_peer(up: bool) -> None:
    resample = importlib.import_module("diffusers.models." + ("upsampling" if up else "downsampling"))
    theirs = resample.KUpsample2D() if up else resample.KDownsample2D()
    x = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(3))
    ours = FirResample(up=up, reflect=True)
    assert torch.allclose(theirs(x), ours(x), atol=1e-6)
    assert torch.allclose(ours(torch.full((1, 2, 6, 6), 3.0)), torch.tensor(3.0))


def test_the_adaptive_norm_starts_from_the_plain_one() -> None:
    norm = AdaGroupNorm(8, 16, 4)
    x, embedding = torch.randn(2, 16, 5, 5), torch.randn(2, 8)
    plain = torch.nn.functional.group_norm(x, 4)
    with torch.no_grad():
        assert not torch.allclose(norm(x, embedding), plain, atol=1e-3)
        norm.linear.weight.zero_()
        norm.linear.bias.zero_()
        assert torch.equal(norm(x, embedding), plain)


def test_the_filter_has_its_values_on_the_meta_device() -> None:
    with torch.device("meta"):
        block = ResnetBlock(32, up=True, fir=True)
    assert block.upsampler.kernel.sum() == 4 and block.conv1.weight.is_meta


def test_a_wrong_call_is_named() -> None:
    with pytest.raises(InputError, match="needs a time embedding"):
        ResnetBlock(32, time_channels=8)(torch.zeros(1, 32, 4, 4))
    with pytest.raises(InputError, match="expects 4 channels and got 3"):
        Upsample(4)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match="scale_shift"):
        ResnetBlock(32, time_embedding_norm="scale_shft")
    with pytest.raises(ConfigError, match="did you mean 'silu'"):
        activation("sillu")
