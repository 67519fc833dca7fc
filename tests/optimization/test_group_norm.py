"""Group norms by a kernel that is compiled here: as exact as those of torch, which computes where it cannot."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from langevin.nn import group_norm
from langevin.nn.norm import activated
from langevin.optimization import chosen
from tests.models.tiny import noise

BF16 = torch.bfloat16
LAST = torch.channels_last
able = group_norm.supported() and shutil.which(os.environ.get("CXX") or "g++") is not None
needs_kernel = pytest.mark.skipif(not able, reason="needs a processor with AVX512-BF16, and a C++ compiler")


def norm_of(channels: int, groups: int) -> nn.GroupNorm:
    """A norm with weights, as a network has it that kernels compute."""
    norm = nn.GroupNorm(groups, channels).to(BF16).requires_grad_(False)
    norm.weight.copy_(noise(channels, seed=1))
    norm.bias.copy_(noise(channels, seed=2))
    net = nn.Sequential(norm)
    assert chosen.native(net) == [norm] and type(norm) is chosen.NativeGroupNorm
    return norm


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((found.double() - wanted).norm() / wanted.norm())


@needs_kernel
@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (48, 3), (320, 32), (16, 1)])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 2), (2, 13, 17), (3, 64, 40)])
@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize("silu", [False, True])
def test_it_is_as_exact_as_torch(channels, groups, batch, height, width, mean, silu) -> None:
    x = (noise(batch, channels, height, width) + mean).to(BF16).contiguous(memory_format=LAST)
    norm, activation = norm_of(channels, groups), nn.SiLU()
    assert group_norm.fits(x, groups, norm.weight, norm.bias)
    found = activated(norm, activation, x) if silu else norm(x)
    wanted = F.group_norm(x.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps)
    wanted = F.silu(wanted) if silu else wanted
    assert found.dtype == BF16 and found.is_contiguous(memory_format=LAST)
    assert far(found, wanted) < 4e-3


@needs_kernel
def test_threads_change_nothing_beyond_rounding_and_what_is_no_number_stays_none() -> None:
    x, norm = noise(1, 32, 50, 31).to(BF16).contiguous(memory_format=LAST), norm_of(32, 4)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(norm(x))
    finally:
        torch.set_num_threads(before)
    assert far(found[1], found[0].double()) < 1e-3
    x[0, 3, 4, 5] = torch.nan
    broken = norm(x).isnan()
    assert broken[:, :8].all() and not broken[:, 8:].any()


@needs_kernel
def test_what_the_kernel_does_not_take_is_torchs() -> None:
    norm = norm_of(32, 4)
    plain = nn.GroupNorm(4, 32).to(BF16).requires_grad_(False)
    plain.load_state_dict(norm.state_dict())
    x = noise(2, 32, 6, 5).to(BF16)
    assert torch.equal(norm(x), plain(x)) and torch.equal(norm(x[:, :, 0]), plain(x[:, :, 0]))
    assert torch.equal(activated(norm, nn.SiLU(), x), F.silu(plain(x)))
    last = x.contiguous(memory_format=LAST)
    assert not group_norm.fits(last.requires_grad_(), 4, norm.weight, norm.bias)
    assert torch.equal(norm(last), plain(last)) and norm(last).requires_grad
    with torch.no_grad():
        heard: list[str] = []
        norm.register_forward_hook(lambda *given: heard.append("norm"))
        activated(norm, nn.SiLU(), last)
        assert heard == ["norm"]
        traced = torch.jit.trace(norm, last, check_trace=False)
    assert "group_norm" in str(traced.inlined_graph)
