"""Layers changed by their class: the results, what makes them pack anew, and what looks through them."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from langevin.adapters.stack import Stack
from langevin.optimization import layers, processor
from langevin.weights.dialects.parts import Parts

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def converts_both(monkeypatch):
    """A processor that multiplies in neither half-precision type."""
    monkeypatch.setattr(processor, "CONVERTED", frozenset({BF16, F16}))


def tower(dtype=F32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(32, 16, 1), nn.Flatten(2), nn.Linear(64, 48),
    )  # fmt: skip
    return net.to(dtype).eval().requires_grad_(False)


def sample(dtype=F32, batch: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def classes(net: nn.Module) -> set[str]:
    return {type(module).__name__ for module in net.modules()} & {c.__name__ for c in layers.ORIGINAL}


def packing(layer: nn.Module) -> layers.Packing | None:
    return vars(layer).get("_packing")


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_wide_products_are_as_near_to_float32_as_plain_ones(dtype):
    net, x = tower(dtype), sample(dtype)
    plain, exact = net(x), net.float()(x.float())
    net.to(dtype)
    assert len(layers.widen(net)) == 4 and layers.widen(net) == []
    wide = net(x)
    assert wide.dtype == dtype and far(wide, plain) < 1e-2
    assert far(wide, exact) <= 1.02 * far(plain, exact)
    layers.restore(net.modules())
    assert not classes(net) and torch.equal(net(x), plain)


def test_what_the_processor_multiplies_itself_stays(monkeypatch):
    monkeypatch.setattr(processor, "CONVERTED", frozenset({F16}))
    assert layers.widen(tower(BF16)) == layers.widen(tower()) == []
    net = tower(F16)
    layers.widen(net)
    x = sample(BF16)
    assert torch.equal(net.to(BF16)(x), tower(F16).to(BF16)(x))


def test_few_rows_are_multiplied_as_they_are(monkeypatch):
    """Converting a large weight for one row costs more than it saves."""
    layer = nn.Linear(32, 32).to(BF16).requires_grad_(False)
    layers.widen(layer)
    seen = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *rest: seen.append(x.dtype) or linear(x, *rest))
    for rows in (1, 15, 16):
        assert layer(torch.randn(rows, 32).to(BF16)).dtype == BF16
    assert seen == [BF16, BF16, F32]


GEOMETRIES = {
    "plain": {"padding": 1},
    "stride": {"padding": 1, "stride": 2},
    "uneven": {"padding": (0, 2), "stride": (2, 1), "dilation": (1, 2)},
    "groups": {"groups": 4},
    "depthwise": {"groups": 8, "padding": 1},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_packed_convolutions_equal_plain_ones(options, order, dtype):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3, **options).to(memory_format=order).requires_grad_(False)
    inputs = [torch.randn(b, 8, h, w).to(dtype) for b, h, w in ((2, 12, 12), (1, 9, 20), (2, 12, 12), (0, 8, 8))]
    exact = [layer(x.float()) if dtype == F32 else layer.to(dtype).float()(x.float()) for x in inputs]
    layer.to(dtype)
    assert layers.pack(layer) == [layer]
    for x, wanted in zip(inputs, exact, strict=True):
        found = layer(x.contiguous(memory_format=order))
        assert found.shape == wanted.shape and found.dtype == dtype
        assert not x.numel() or far(found, wanted) < (1e-6 if dtype == F32 else 4e-3)
    assert packing(layer).weight.dtype == F32
    assert layer(inputs[0][0]).shape == exact[0][0].shape  # without a batch, as torch allows


def test_other_convolutions_are_left_alone():
    class Own(nn.Conv2d):
        pass

    replaced = nn.Conv2d(4, 4, 3)
    replaced.forward = lambda x: x
    others = [
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, padding="same"), Own(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3), nn.Conv1d(4, 4, 3), replaced,
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    ]  # fmt: skip
    assert layers.pack(nn.ModuleList(others)) == []
    for layer in others[:2]:
        x = torch.randn(1, 4, 8, 8).to(BF16)
        plain = layer.to(BF16).requires_grad_(False)(x)
        assert layers.widen(layer) == [layer] and far(layer(x), plain) < 1e-2


CHANGES = {
    "in place": lambda layer: layer.weight.mul_(2),
    "while inferring": lambda layer: torch.inference_mode()(layer.weight.mul_)(2),
    "by a view": lambda layer: layer.weight.detach()[0].zero_(),
    "data": lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
    "transposed": lambda layer: setattr(layer.weight, "data", layer.weight.data.transpose(2, 3)),
    "parameter": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 3, requires_grad=False)),
    "loaded": lambda layer: layer.load_state_dict({"weight": layer.weight * 2, "bias": layer.bias}),
    "assigned": lambda layer: layer.load_state_dict({"weight": layer.weight * 2, "bias": layer.bias}, assign=True),
    "optimizer": lambda layer: stepped(layer),
}


def stepped(layer: nn.Module) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], lr=1.0).step()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_a_changed_weight_is_packed_anew(change):
    layer, x = nn.Conv2d(4, 8, 3), torch.randn(2, 4, 9, 9)
    layers.pack(layer)
    before = layer(x)
    kept = packing(layer)
    layer(x)
    assert packing(layer) is kept
    change(layer)
    wanted = torch.conv2d(x, layer.weight, layer.bias)
    assert far(layer(x), wanted) < 1e-6 and far(wanted, before) > 1e-3


def test_a_cast_layer_computes_in_its_new_type():
    layer, x = nn.Conv2d(4, 8, 3).requires_grad_(False), torch.randn(2, 4, 9, 9)
    layers.pack(layer)
    layer(x)
    layer.double()
    assert packing(layer) is None and torch.equal(layer(x.double()), torch.conv2d(x.double(), layer.weight, layer.bias))


def test_the_address_of_a_replaced_weight_is_not_taken_while_its_packing_is_kept():
    layer, x = nn.Conv2d(16, 16, 3).requires_grad_(False), torch.randn(1, 16, 8, 8)
    layers.pack(layer)
    for k in range(1, 20):
        layer.weight.data = torch.full_like(layer.weight, k)
        assert far(layer(x), torch.conv2d(x, layer.weight, layer.bias)) < 1e-6


def test_gradients_are_those_of_plain_layers():
    x = sample()
    nets = [tower().requires_grad_(True) for _ in range(2)]
    layers.pack(nets[1]), layers.widen(nets[1].to(F32))
    for net in nets:
        net(x).square().sum().backward()
    assert packing(nets[1][0]) is None
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_autocast_computes_in_its_own_type():
    net, x = tower(), sample()
    with torch.autocast("cpu", BF16):
        plain = net(x)
        layers.pack(net)
        assert torch.equal(net(x), plain) and plain.dtype == BF16


@pytest.mark.filterwarnings("ignore")
def test_what_looks_through_a_network_sees_ordinary_operations():
    net, x = tower(BF16), sample(BF16)
    with FlopCounterMode(display=False) as plain:
        net(x)
    layers.widen(net)
    layers.pack(net)
    wanted = net(x)
    with FlopCounterMode(display=False) as packed:
        net(x)
    assert packed.get_total_flops() == plain.get_total_flops() > 0
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), wanted)
    assert far(torch.export.export(net, (x,)).module()(x), wanted) < 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        assert far(torch.jit.trace(net, x, check_trace=False)(x), wanted) < 1e-2
    assert far(torch.func.vmap(lambda one: net(one[None])[0])(x), wanted) < 1e-2
    assert net.to("meta")(x.to("meta")).shape == wanted.shape


def test_copies_and_pickles_pack_for_themselves():
    net, x = tower(), sample()
    layers.pack(net)
    wanted = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert packing(twin[0]) is None and torch.equal(twin(x), wanted)
        with torch.no_grad():
            twin[0].weight.zero_()
        assert torch.equal(net(x), wanted) and not torch.equal(twin(x), wanted)
        layers.restore(twin.modules())
        assert not classes(twin)


@torch.no_grad()
def test_adapters_come_and_go():
    plain, fast, x = tower(), tower(), sample()
    layers.pack(fast)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "down": torch.randn(2, 4, 3, 3, generator=generator), "up": torch.randn(32, 2, 1, 1, generator=generator)
    }  # fmt: skip
    stacks = [Stack(net) for net in (plain, fast)]
    before = fast(x)

    def agree(changed: bool) -> None:
        found = fast(x)
        assert far(found, plain(x)) < 1e-6 and (far(found, before) > 1e-2) == changed

    for step, changed in (
        (lambda s: s.add("a", {"0": Parts("lora", dict(tensors))}), True),
        (lambda s: s.fuse(), True),
        (lambda s: s.unfuse(), True),
        (lambda s: s.disable(), False),
        (lambda s: s.enable(), True),
        (lambda s: s.fuse(), True),
        (lambda s: s.remove("a"), False),
    ):
        for stack in stacks:
            step(stack)
        agree(changed)
    assert list(fast.state_dict()) == list(plain.state_dict())


def test_networks_in_use_are_shared_and_left_as_they_were():
    a, b = tower(BF16), tower(BF16)
    layers.widen(b[0])
    with layers.lent([(a, layers.widen), (a, layers.widen)]):
        with layers.lent([(a, layers.widen), (b, layers.widen)]):
            assert layers.in_use(a) and type(b[5]) is layers.WideLinear
        assert type(a[5]) is layers.WideLinear and type(b[5]) is nn.Linear and type(b[0]) is layers.WideConv2d
    assert not classes(a) and not layers.in_use(a)
    with pytest.raises(RuntimeError), layers.lent([(b, layers.widen)]):
        raise RuntimeError
    assert type(b[5]) is nn.Linear and not layers.in_use(b)


def test_what_this_processor_converts_follows_from_what_torch_says(monkeypatch):
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    assert processor.converted() == frozenset()
    monkeypatch.setattr(processor.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert BF16 not in processor.converted()
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert BF16 in processor.converted()
