"""Triton kernels: their arithmetic, in Triton's interpreter, and the step of `optimize` that has networks use them.

The interpreter rounds to bfloat16 by cutting off; a device rounds to the nearest. Either way the result is the number
before or after the exact one.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel, UNet2DModel, picturebook
from langevin.core import imports
from langevin.core.errors import ConfigError, MissingDependencyError
from langevin.nn.resnet import ResnetBlock
from langevin.nn.transformer import Expansion, gated_gelu
from langevin.optimization import fused, graphs, plan
from langevin.optimization.fused import FusedExpansion, FusedGroupNorm
from tests.models.tiny import TINY, noise
from tests.optimization.fresh import interpreted_kernels
from tests.pipelines.tiny import VAE

if not imports.is_available("triton"):
    pytest.skip('needs Triton: pip install "langevin[kernels]"', allow_module_level=True)

TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    """The kernels in Triton's interpreter."""
    with interpreted_kernels() as module:
        yield module


@pytest.fixture
def here(kernels, monkeypatch) -> Any:
    """Let the step take the CPU for a device with Triton, and leave steps for CPUs out; nothing but tests does."""
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    monkeypatch.setattr(plan, "STEPS", [])
    return kernels


def reordered(x: Tensor) -> Tensor:
    """Return the same values with channels next to each other in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def spacing(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance between neighbouring numbers of a type, beside exact values."""
    return torch.finfo(dtype).eps * 2.0 ** exact.abs().clamp(min=1e-3).log2().floor()


def check_close(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Compare with results in float64: 1e-5 in float32, beside one rounding in half precision."""
    assert found.dtype == dtype and found.shape == exact.shape
    near = 0.0 if dtype == torch.float32 else spacing(exact, dtype)
    assert ((found.double() - exact).abs() <= near + 1e-5).all()


# (C, groups): every number of groups and channels per group of the published networks, and some odd ones
WIDTHS = [(320, 32), (640, 32), (960, 32), (128, 32), (72, 8), (30, 3), (11, 11), (5, 1)]
SIZES = [(3, 5), (1, 1), (9,)]


@pytest.mark.parametrize("channels, groups", WIDTHS)
@pytest.mark.parametrize("silu", [False, True])
def test_small_group_norms_are_those_of_torch(channels: int, groups: int, silu: bool, kernels) -> None:
    sizes = SIZES[:1] if groups == 32 else SIZES
    for size, order, dtype in ((s, o, d) for s in sizes for o in (torch.clone, reordered) for d in TYPES[:2]):
        x = order((noise(1 if groups == 32 else 2, channels, *size) * 3 + 5).to(dtype))
        weight, bias = noise(2, channels, seed=1).to(dtype)
        found = kernels.group_norm(x, groups, weight, bias, eps=1e-5, silu=silu)
        exact = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
        check_close(found, F.silu(exact) if silu else exact, dtype)
        assert found.stride() == x.stride()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", [torch.clone, reordered])
@pytest.mark.parametrize("channels, groups", [(36, 2), (24, 1), (4, 4)])
def test_large_groups_are_measured_in_parts(channels: int, groups: int, order: Any, dtype: Any, kernels, monkeypatch):
    """In float32 with a mean a hundred times the deviation, which would be lost if squares were summed."""
    monkeypatch.setattr(kernels, "PARTS", 3)
    monkeypatch.setattr(kernels, "TILE", 256)
    x = order((noise(1, channels, 20, 21) + (100 if dtype == torch.float32 else 1)).to(dtype))
    weight, bias = noise(2, channels, seed=1).to(dtype)
    found = kernels.group_norm(x, groups, weight, bias, eps=1e-5, silu=True)
    exact = F.silu(F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5))
    if dtype == torch.float32:
        torch.testing.assert_close(found.double(), exact, atol=2e-5, rtol=2e-5)
    else:
        check_close(found, exact, dtype)
    assert found.stride() == x.stride()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 74), (1, 1, 2), (5, 2600)])
def test_gated_gelus_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype, kernels) -> None:
    x = (3 * noise(*shape)).to(dtype)
    check_close(kernels.gated_gelu(x), gated_gelu(x.double()), dtype)


# In networks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**TINY, "block_out_channels": (16, 32), "norm_num_groups": 4}).eval()


@torch.no_grad()
def call(unet: nn.Module, **more: Any) -> Tensor:
    return unet(noise(2, 4, 4, 4), torch.tensor(7), noise(2, 7, 16, seed=1), **more).sample


class Counted:
    """Counts the calls of kernels."""

    def __init__(self, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        for name in ("group_norm", "gated_gelu"):
            monkeypatch.setattr(kernels, name, self.counting(name, getattr(kernels, name)))

    def counting(self, name: str, kernel: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Tensor:
            self.calls.append((name, kwargs.get("silu")))
            return kernel(*args, **kwargs)

        return counted

    def taken(self) -> Counter:
        found = Counter(self.calls)
        self.calls.clear()
        return found


@pytest.fixture
def counted(here, monkeypatch) -> Counted:
    return Counted(here, monkeypatch)


def classes(network: nn.Module) -> list[type]:
    return [type(module) for module in network.modules()]


def test_a_network_is_fused_and_undone(unet, counted) -> None:
    before, wanted, state = classes(unet), call(unet), copy.deepcopy(unet.state_dict())
    report = plan.optimize(unet, kernels=True)
    assert fused.Fused.name in [change.what for change in report]
    assert FusedGroupNorm in classes(unet) and FusedExpansion in classes(unet)
    counted.taken()
    assert (call(unet) - wanted).abs().max() < 1e-4
    kinds = [type(m) for m in unet.modules() if isinstance(m, (ResnetBlock, Expansion, nn.GroupNorm))]
    blocks, feeds = kinds.count(ResnetBlock), kinds.count(FusedExpansion)
    silent = kinds.count(FusedGroupNorm) - 2 * blocks - 1
    wanted_calls = {("group_norm", True): 2 * blocks + 1, ("group_norm", False): silent, ("gated_gelu", None): feeds}
    assert counted.taken() == wanted_calls
    assert blocks > 2 and feeds > 0 and silent > 0
    assert not plan.optimize(unet, kernels=True)
    assert fused.Fused.name in plan.done(copy.deepcopy(unet))
    plan.deoptimize(unet)
    assert classes(unet) == before and torch.equal(call(unet), wanted)
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("kind", ["unconditional", "autoencoder"])
def test_other_networks_are_fused(kind: str, counted) -> None:
    torch.manual_seed(0)
    if kind == "autoencoder":
        network, given = AutoencoderKL(**VAE).eval(), (noise(1, 3, 16, 16),)
    else:
        sizes: dict[str, Any] = {"sample_size": 8, "block_out_channels": (16, 32), "norm_num_groups": 4}
        kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
        network = UNet2DModel(**sizes, **kinds, layers_per_block=1, resnet_time_scale_shift="scale_shift").eval()
        given = (noise(1, 3, 8, 8), torch.tensor(3))
    with torch.no_grad():
        wanted = network(*given).sample
        plan.optimize(network, kernels=True)
        counted.taken()
        assert (network(*given).sample - wanted).abs().max() < 1e-4
    assert set(counted.taken()) == {("group_norm", True), ("group_norm", False)}


def test_half_precision_is_no_further_from_float32(unet, counted) -> None:
    exact = call(unet)
    half = unet.to(torch.bfloat16)

    @torch.no_grad()
    def away() -> float:
        given = (noise(2, 4, 4, 4), torch.tensor(7.0), noise(2, 7, 16, seed=1))
        return float((half(*(x.bfloat16() for x in given)).sample.float() - exact).norm() / exact.norm())

    plain = away()
    fused.Fused().apply(half)
    assert 0 < away() < 1.5 * plain and counted.taken()


def with_gradients(unet: nn.Module) -> Tensor:
    unet(noise(2, 4, 4, 4), torch.tensor(7), noise(2, 7, 16, seed=1)).sample.sum().backward()
    return unet.down_blocks[0].resnets[0].norm1.weight.grad


def with_autocast(unet: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return call(unet)


def with_tracing(unet: nn.Module) -> Tensor:
    norm = unet.down_blocks[0].resnets[0].norm1.requires_grad_(False)
    x = noise(2, norm.num_channels, 4, 4)
    return torch.jit.trace(norm, x, check_trace=False)(x)


def with_a_compiler(unet: nn.Module) -> Tensor:
    with torch.no_grad():
        block = torch.compile(unet.up_blocks[-1].resnets[-1].eval(), backend="eager", fullgraph=True)
        return block(noise(2, 32, 8, 8), noise(2, 64))


@pytest.mark.parametrize("way", [with_gradients, with_autocast, with_tracing, with_a_compiler])
def test_where_torch_looks_through_nothing_is_fused(way: Any, unet, counted) -> None:
    wanted = way(copy.deepcopy(unet))
    fused.Fused().apply(unet)
    assert torch.equal(way(unet), wanted) and not counted.taken()


@pytest.mark.parametrize("x", [noise(2, 8), noise(2, 8, 4, 4).double(), noise(2, 8, 4, 8)[..., ::2], noise(0, 8, 4, 4)])
def test_inputs_that_kernels_do_not_take_are_torchs(x: Tensor, counted) -> None:
    norm = nn.GroupNorm(2, 8).requires_grad_(False).to(x.dtype)
    wanted = norm(x)
    fused.Fused().apply(norm)
    assert torch.equal(norm(x), wanted) and not counted.taken()


def test_hooks_are_called(unet, counted) -> None:
    """What doubles a norm doubles what goes into the activation."""
    block = unet.down_blocks[0].resnets[0]
    block.norm1.register_forward_hook(lambda module, given, out: 2 * out)
    block.nonlinearity.register_forward_hook(lambda module, given, out: out + 1)
    wanted = call(unet)
    fused.Fused().apply(unet)
    assert (call(unet) - wanted).abs().max() < 1e-4
    assert counted.taken()["group_norm", False] >= 2


def test_recorded_calls_hold_kernels(unet, counted) -> None:
    fused.Fused().apply(unet)
    wanted = call(unet)
    counted.taken()
    replay = graphs.attach(unet, graphs.Rehearsal)
    assert all(torch.equal(call(unet), wanted) for _ in range(2)) and replay.played == 1 and counted.taken()


# Asked for where it cannot be ----------------------------------------------------------------------------------------


def test_without_a_device_or_triton_or_with_a_compiler_it_is_refused(unet, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"fused kernels.*CUDA device.*to\('cuda'\)"):
        plan.optimize(unet, kernels=True)
    with pytest.raises(ConfigError, match=r"unet.*fused kernels"):
        DiffusionPipeline.from_pretrained(picturebook.model_folder()).optimize(kernels=True)
    with pytest.raises(ConfigError, match=r"not both.*`kernels`"):
        plan.optimize(unet, kernels=True, compile=True)
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(imports, "is_available", lambda name: False)
    with pytest.raises(MissingDependencyError, match=r"langevin\[kernels\]"):
        plan.optimize(unet, kernels=True)
    assert not plan.done(unet) and FusedGroupNorm not in classes(unet)


@pytest.mark.parametrize("failing", ["raises", "differs"])
def test_kernels_that_do_not_work_on_the_device_are_refused(failing: str, unet, here, monkeypatch) -> None:
    def broken(x: Tensor) -> Tensor:
        if failing == "raises":
            raise RuntimeError("no C compiler\nmore")
        return x.new_zeros(*x.shape[:-1], x.shape[-1] // 2)

    monkeypatch.setattr(here, "gated_gelu", broken)
    with pytest.raises(ConfigError, match=r"do not run here \(no C compiler\)|compute something else in torch.float32"):
        plan.optimize(unet, kernels=True)
    assert not plan.done(unet)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TYPES)
def test_on_a_cuda_device(dtype: torch.dtype, unet) -> None:
    unet.to("cuda", dtype)
    given = (noise(2, 4, 4, 4), torch.tensor(7.0), noise(2, 7, 16, seed=1))
    with torch.no_grad():
        wanted, found = [], []
        for into in (wanted, found):
            into.append(unet(*(x.to("cuda", dtype) for x in given)).sample.float())
            plan.optimize(unet, kernels=True)
    assert (found[0] - wanted[0]).norm() < 3 * torch.finfo(dtype).eps ** 0.75 * wanted[0].norm()
