"""Adapters on a network: attached, weighted, fused and removed with an exact undo."""

from __future__ import annotations

import copy

import pytest
import torch
from langevin.adapters.stack import CHILD, STATE, Stack, stack_of
from langevin.core.errors import ConfigError, NonFiniteError, WeightsError
from langevin.weights.dialects.parts import Parts
from torch import nn

from tests.adapters.making import Net, digest, drawn, lora, net, sample, style

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def traces(model: nn.Module) -> list[str]:
    """Return what is left of adapters in a network."""
    found = [name for name, module in model.named_modules() if CHILD in module._modules or CHILD in name]
    found += [
        name for name, module in model.named_modules() if module._forward_hooks or module._forward_hooks_with_kwargs
    ]
    found += [name for name, module in model.named_modules() if type(module._parameters) is not dict]
    return found + [name for name in (STATE,) if name in model.__dict__]


def by_hand(model: Net, parts: dict[str, Parts], weight: float = 1.0) -> Net:
    """Return a copy of the network with the products added to its weights in float64."""
    changed = copy.deepcopy(model)
    for path, part in parts.items():
        layer = changed.get_submodule(path)
        down, up = (part.tensors[name].double().flatten(1) for name in ("down", "up"))
        product = (up @ down).reshape(layer.weight.shape) * weight * (part.alpha or len(down)) / len(down)
        layer.weight.data = (layer.weight.double() + product).to(layer.weight.dtype)
    return changed


def test_an_adapter_adds_and_leaves_no_trace() -> None:
    model, x = net(), sample()
    before, y, names = digest(model), model(x), list(model.state_dict())
    stack = Stack(model)
    stack.add("a", style(model))
    assert torch.allclose(model(x), by_hand(net(), style(model))(x), atol=1e-5)
    assert not torch.allclose(model(x), y, atol=1e-2)
    assert digest(model) == before and list(model.state_dict()) == names
    model.load_state_dict(model.state_dict())
    assert stack.names == ["a"] and stack.active == ["a"]
    stack.remove("a")
    assert digest(model) == before and torch.equal(model(x), y) and traces(model) == []


def test_several_adapters_sum_with_weights() -> None:
    model, x = net(), sample()
    stack = Stack(model)
    a, b = style(model), style(model, rank=3, seed=40, alpha=None)
    stack.add("a", a)
    stack.add("b.2", b)
    stack.set({"a": 0.5, "b.2": -1.5})
    assert torch.allclose(model(x), by_hand(by_hand(net(), a, 0.5), b, -1.5)(x), atol=1e-5)
    stack.set({"b.2": 1})
    assert stack.active == ["b.2"]
    assert torch.allclose(model(x), by_hand(net(), b)(x), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fusing_is_undone_exactly(dtype: torch.dtype) -> None:
    model, x = net(dtype), sample(dtype)
    before, y = digest(model), model(x)
    stack = Stack(model)
    a, b = style(model), style(model, seed=40)
    stack.add("a", a, scale=0.7)
    stack.add("b", b)
    hooked = model(x)
    stack.fuse(["a"])
    stack.fuse()
    assert stack.fused == ["a", "b"]
    expected = by_hand(by_hand(net(torch.float32), a, 0.7), b).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    assert torch.allclose(model(x), expected(x), atol=tolerance) and torch.allclose(model(x), hooked, atol=tolerance)
    stack.unfuse(["a"])
    stack.unfuse(["b"])
    assert digest(model) == before and torch.equal(model(x), hooked)
    stack.fuse()
    stack.remove("b")
    stack.remove("a")
    assert digest(model) == before and torch.equal(model(x), y) and traces(model) == []
