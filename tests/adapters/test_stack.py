"""Adapters on a network: attached, weighted, fused and removed with an exact undo."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from langevin.adapters.attaching import CHILD
from langevin.adapters.stack import STATE, Stack
from langevin.core.errors import ConfigError, InputError, NonFiniteError, WeightsError
from langevin.weights.dialects.parts import Parts
from tests.adapters.making import Net, Packed, digest, net, sample, style, tensors

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


def test_state_dicts_know_nothing_of_adapters() -> None:
    """Neither those that are written nor those that are read, for the network and for each part of it."""
    model, other = net(), net()
    stack = Stack(model)
    stack.add("a", style(model))
    assert list(model.state_dict()) == list(other.state_dict())
    assert model.state_dict()._metadata == other.state_dict()._metadata
    assert list(model.conv.state_dict()) == ["weight", "bias"]
    with torch.no_grad():
        other.conv.weight.normal_()
    assert not model.load_state_dict(other.state_dict(), strict=True).missing_keys
    assert torch.equal(model.conv.weight, other.conv.weight)
    stack.fuse()
    fused = model.state_dict()
    assert list(fused) == list(other.state_dict()) and not torch.equal(fused["conv.weight"], other.conv.weight)


def test_deltas_move_with_their_layers() -> None:
    model = net()
    stack = Stack(model)
    stack.add("a", style(model), scale=0.3)
    stack.fuse()
    fused = digest(model.half())
    stack.unfuse()
    assert digest(model) == digest(net().half())
    assert stack.delta("a", "conv").down.dtype == torch.float16
    assert fused != digest(model) and model(sample(torch.float16)).dtype == torch.float16


def test_a_copy_of_a_network_has_adapters_of_its_own() -> None:
    model, x = net(), sample()
    Stack(model).add("a", style(model))
    Stack(model).fuse()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    Stack(twin).remove("a")
    assert digest(twin) == digest(net()) and traces(twin) == [] and Stack(model).fused == ["a"]
    Stack(model).unfuse()
    assert digest(model) == digest(net())


def test_weights_by_layer() -> None:
    """Prefixes, regular expressions and functions; the last key that matches counts, others are 1."""
    model = net()
    stack = Stack(model)
    stack.add("a", style(model))
    stack.set({"a": {"": 0.0, "body": 0.5, r"body\.l.*": 2, "conv": 3}})
    assert stack.weights("a") == {"conv": 3, "point": 0, "body.first": 0.5, "body.last": 2}
    stack.set({"a": {"body": 0.5}})
    assert stack.weights("a") == {"conv": 1, "point": 1, "body.first": 0.5, "body.last": 0.5}
    stack.set({"a": len})
    assert stack.weights("a")["conv"] == 4
    x, wanted = sample(), net()
    for path, part in style(model).items():
        wanted = by_hand(wanted, {path: part}, len(path))
    assert torch.allclose(model(x), wanted(x), atol=1e-4, rtol=1e-4)
    for wrong in ({"bdoy": 1.0}, {"body(": 1.0}, {"body": float("nan")}, "1", None, True):
        with pytest.raises((ConfigError, InputError), match="weight of the adapter 'a'"):
            stack.set({"a": wrong})
    assert stack.weights("a")["conv"] == 4


def test_disabling_takes_everything_out() -> None:
    model, x = net(), sample()
    y, stack = model(x), Stack(model)
    stack.add("a", style(model))
    stack.add("b", style(model, seed=40))
    stack.fuse(["b"])
    both = model(x)
    stack.disable()
    assert torch.equal(model(x), y) and digest(model) == digest(net()) and not stack.enabled
    assert stack.active == ["a", "b"] and stack.fused == ["b"]
    stack.enable()
    assert torch.equal(model(x), both)
    stack.disable()
    stack.unfuse()
    assert torch.equal(model(x), y)
    with pytest.raises(ConfigError, match="enable"):
        stack.fuse()


def test_baking_forgets_the_originals() -> None:
    model, x = net(), sample()
    stack = Stack(model)
    stack.add("a", style(model))
    stack.add("b", style(model, seed=40))
    stack.fuse(["a"])
    y, fused = model(x), digest(model)
    stack.bake()
    assert stack.names == ["b"] and digest(model) == fused and torch.equal(model(x), y)
    stack.remove("b")
    assert digest(model) == fused and traces(model) == []
    assert torch.allclose(model(x), by_hand(net(), style(net()))(x), atol=1e-5)


def test_a_run_with_a_factor() -> None:
    model, x = net(), sample()
    stack = Stack(model)
    stack.add("a", style(model), scale=0.8)
    y = model(x)
    for factor in (2.0, 0.5):
        with stack.scaled(factor):
            assert not torch.allclose(model(x), y, atol=1e-3)
        assert torch.equal(model(x), y)
    with stack.scaled(0.5):
        assert torch.allclose(model(x), by_hand(net(), style(net()), 0.4)(x), atol=1e-5)
        with stack.scaled(0.5):
            stack.set({"a": 0.6})
        assert torch.allclose(model(x), by_hand(net(), style(net()), 0.3)(x), atol=1e-5)
        found: list[Exception] = []
        thread = threading.Thread(target=lambda: found.append(entered(stack, 1.0)))
        thread.start()
        thread.join()
        assert isinstance(found[0], ConfigError) and "times 0.5 is going on" in str(found[0])
    stack.set({"a": 0.8})
    assert torch.equal(model(x), y)
    stack.fuse()
    assert entered(stack, 1.0) is None and "unfuse" in str(entered(stack, 0.5))
    with pytest.raises(RuntimeError, match="inside"), stack.scaled(1):
        raise RuntimeError("inside")
    assert entered(stack, 1) is None
    with stack.scaled(1):
        stack.remove("a")
    assert traces(model) == []


def entered(stack: Stack, factor: float) -> Exception | None:
    """Return what a run with a factor raises."""
    try:
        with stack.scaled(factor):
            return None
    except ConfigError as error:
        return error


def test_swapping_keeps_name_weights_and_storage() -> None:
    model, x = net(), sample()
    stack = Stack(model)
    stack.add("a", style(model), scale=0.5, target_rank=4)
    where = stack.delta("a", "conv").down.data_ptr()
    new = style(model, rank=3, seed=70, alpha=None)
    partial = {path: new[path] for path in ("conv", "body.last")}
    for parts in (new, partial, style(model)):
        stack.swap("a", parts)
        assert torch.allclose(model(x), by_hand(net(), parts, 0.5)(x), atol=1e-5)
        back = stack.parts("a")
        assert back.keys() == parts.keys()
        for path, part in parts.items():
            assert back[path].alpha == part.alpha
            assert all(torch.equal(back[path].tensors[name], tensor) for name, tensor in part.tensors.items())
    assert stack.delta("a", "conv").down.data_ptr() == where
    stack.fuse()
    fused = digest(model)
    stack.swap("a", new)
    assert stack.fused == ["a"] and digest(model) != fused
    assert torch.allclose(model(x), by_hand(net(), new, 0.5)(x), atol=1e-5)
    with pytest.raises(ConfigError, match="target_rank=4"):
        stack.swap("a", style(model, rank=5))
    stack.remove("a")
    assert digest(model) == digest(net()) and traces(model) == []


@pytest.mark.parametrize("rank", (None, 4))
def test_an_exchange_that_cannot_be_fused_changes_nothing(rank: int | None) -> None:
    model = net()
    stack = Stack(model)
    stack.add("other", style(model, seed=40))
    stack.add("a", style(model), scale={"body": 0.5}, target_rank=rank)
    stack.fuse(scale=0.7)
    fused, kept = digest(model), stack.parts("a")["conv"].tensors["up"].clone()
    damaged = style(model, rank=3, seed=70, alpha=None)
    damaged["conv"].tensors["up"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="'conv'"):
        stack.swap("a", damaged)
    assert digest(model) == fused and stack.fused == ["other", "a"]
    assert torch.equal(stack.parts("a")["conv"].tensors["up"], kept)
    assert stack.weights("a") == {"conv": 1, "point": 1, "body.first": 0.5, "body.last": 0.5}
    stack.remove("a")
    stack.remove("other")
    assert digest(model) == digest(net()) and traces(model) == []


def test_an_exchange_while_disabled_takes_effect_when_enabled() -> None:
    model, x = net(), sample()
    y, stack, new = model(x), Stack(model), style(model, seed=70)
    stack.add("a", style(model))
    stack.fuse()
    stack.disable()
    stack.swap("a", new)
    assert digest(model) == digest(net()) and torch.equal(model(x), y) and stack.fused == ["a"]
    stack.enable()
    assert torch.allclose(model(x), by_hand(net(), new)(x), atol=1e-5) and digest(model) != digest(net())
    stack.remove("a")
    assert digest(model) == digest(net()) and traces(model) == []


def test_swapping_without_a_reserve_never_writes_into_the_tensors_of_the_caller() -> None:
    model, x = net(), sample()
    stack = Stack(model)
    old, new = style(model), {"body.first": style(model, rank=5)["body.first"]}
    kept = copy.deepcopy(old)
    stack.add("a", old)
    stack.swap("a", new)
    assert stack.layers("a") == ["body.first"] and CHILD not in model.conv._modules
    assert torch.allclose(model(x), by_hand(net(), new)(x), atol=1e-5)
    assert all(torch.equal(old[p].tensors["down"], kept[p].tensors["down"]) for p in old)


def test_decomposed_adapters_exchange_too() -> None:
    model, x = net(), sample()

    def decomposed(seed: int) -> dict[str, Parts]:
        held = {path: part.tensors for path, part in style(model, seed=seed).items() if path != "conv"}
        rows = {path: model.get_submodule(path).weight.flatten(1).norm(dim=1) for path in held}
        return {path: Parts("lora", {**held[path], "magnitude": rows[path].detach() + 0.5}, 1.0) for path in held}

    wanted = net()
    Stack(wanted).add("b", decomposed(70))
    stack = Stack(model)
    stack.add("a", decomposed(5), target_rank=4)
    where = stack.delta("a", "point").magnitude.data_ptr()
    stack.swap("a", decomposed(70))
    assert stack.delta("a", "point").magnitude.data_ptr() == where
    assert torch.allclose(model(x), wanted(x), atol=1e-6)
    stack.swap("a", {"point": decomposed(5)["point"]})
    assert stack.layers("a") == ["point"]
    stack.remove("a")
    assert digest(model) == digest(net()) and traces(model) == []


def test_a_reserve_never_writes_into_the_tensors_of_the_caller() -> None:
    model = net()
    stack, given = Stack(model), {"conv": Parts("full", {"diff": torch.ones(8, 3, 3, 3)})}
    stack.add("a", given, target_rank=4)
    stack.swap("a", {"conv": Parts("full", {"diff": torch.zeros(8, 3, 3, 3)})})
    assert torch.equal(given["conv"].tensors["diff"], torch.ones(8, 3, 3, 3))
    assert torch.equal(model(sample()), net()(sample()))


def test_one_graph_that_sees_every_change_and_compiles_only_for_new_structure() -> None:
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        nonlocal compiled
        compiled += 1
        return graph.forward

    torch._dynamo.reset()
    model, x = net(), sample()
    fast, stack = torch.compile(model, fullgraph=True, backend=backend), Stack(model)

    def counted() -> int:
        assert torch.allclose(fast(x), model(x), atol=1e-6)
        return compiled

    y = fast(x)
    assert counted() == 1
    stack.add("a", style(model), target_rank=4)
    assert counted() == 2 and not torch.allclose(fast(x), y, atol=1e-2)
    for weight in (0.5, 0.0, -1.0):
        stack.set({"a": weight})
        assert counted() == 2
    with stack.scaled(0.25):
        assert counted() == 2
    stack.swap("a", style(model, rank=4, seed=70, alpha=2.0))
    assert counted() == 2
    stack.swap("a", {path: part for path, part in style(model, rank=1).items() if path != "conv"})
    assert counted() == 2
    stack.set({})
    assert counted() == 3 and torch.equal(fast(x), y)
    stack.set({"a": 1})
    stack.fuse()
    assert counted() <= 4
    stack.unfuse()
    stack.remove("a")
    assert counted() <= 4 and torch.equal(fast(x), y)


@pytest.mark.parametrize("form", ("loha", "lokr both", "oft", "full", "dora", "dora columns"))
def test_other_algorithms_compile_too(form: str) -> None:
    torch._dynamo.reset()
    model, x = net(), sample()
    parts = {}
    for path in ("conv", "body.first"):
        shape = model.get_submodule(path).weight.shape
        held = tensors("lora" if form.startswith("dora") else form, shape)
        if form.startswith("dora"):
            axis = int("columns" in form)
            held["magnitude"] = torch.ones([n if i == axis else 1 for i, n in enumerate(shape)])
        parts[path] = Parts("lora" if form.startswith("dora") else form.split()[0], held, 1.0)
    stack = Stack(model)
    if form == "lokr both":
        del parts["conv"]  # 3 input channels do not divide
    stack.add("a", parts)
    fast = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(fast(x), model(x), atol=1e-6)
    hooked = model(x)
    stack.fuse()
    assert torch.allclose(model(x), hooked, atol=1e-4)
    stack.add("b", style(model))
    both = model(x)
    stack.unfuse()
    assert torch.allclose(model(x), both, atol=1e-4)
    stack.remove("a")
    stack.remove("b")
    assert digest(model) == digest(net()) and traces(model) == []


def test_training_an_adapter_moves_only_the_adapter() -> None:
    model, x = net(), sample()
    model.requires_grad_(False)
    stack = Stack(model)
    start = style(model)
    stack.add("a", start, trainable=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert len(parameters) == 8
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    before, first = digest(model), float(model(x).detach().square().mean())
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert float(model(x).detach().square().mean()) < first and digest(model) == before
    assert not torch.equal(stack.parts("a")["conv"].tensors["up"], start["conv"].tensors["up"])
    assert torch.equal(start["conv"].tensors["up"], style(net())["conv"].tensors["up"])


def test_wrong_paths_and_names_change_nothing() -> None:
    model, x = net(), sample()
    y, stack = model(x), Stack(model)
    misspelt = {path.replace("first", "frist"): part for path, part in style(model).items()}
    with pytest.raises(ConfigError, match=r"'body.frist' \(there is 'body.first'\)"):
        stack.add("a", misspelt)
    damaged = style(model) | {"body.last": Parts("lora", {"down": torch.ones(2, 5), "up": torch.ones(6, 2)})}
    with pytest.raises(ConfigError, match=r"'body.last'.*\[2, 5\]"):
        stack.add("a", damaged)
    for wrong in ({}, {"": Parts("full", {"diff": torch.ones(2)})}):
        with pytest.raises(ConfigError):
            stack.add("a", wrong)
    assert traces(model) == [] and torch.equal(model(x), y) and stack.names == []
    stack.add("style", style(model))
    for call in (
        lambda: stack.add("style", style(model)),
        lambda: stack.set({"stile": 1.0}),
        lambda: stack.remove("stile"),
        lambda: stack.fuse(["stile"]),
        lambda: stack.unfuse(["style"]),
        lambda: stack.unfuse(),
        lambda: stack.bake(),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(ConfigError, match="did you mean 'style'"):
        stack.parts("stile")
    stack.fuse()
    with pytest.raises(ConfigError, match="already fused"):
        stack.fuse(["style"])
    with pytest.raises(ConfigError, match="unfuse it first"):
        stack.set({"style": 0.5})


@pytest.mark.parametrize("value", (float("nan"), float("inf"), 1e30))
def test_fusing_what_is_not_finite_leaves_the_network_alone(value: float) -> None:
    model = net(torch.float16)
    before, stack, parts = digest(model), Stack(model), style(model)
    stack.add("good", style(model, seed=40))
    stack.fuse()
    fused = digest(model)
    parts["body.last"].tensors["up"][0, 0] = value
    stack.add("bad", parts)
    with pytest.raises(NonFiniteError, match=r"'body\.last'") as caught:
        stack.fuse()
    assert caught.value.module == "body.last" and digest(model) == fused and stack.fused == ["good"]
    stack.fuse(safe=False)
    stack.remove("bad")
    assert digest(model) == fused
    stack.remove("good")
    assert digest(model) == before


def test_large_weights_whose_sum_is_not_finite_are_fused() -> None:
    model = nn.ModuleDict({"x": nn.Linear(4, 4)})
    with torch.no_grad():
        model["x"].weight.fill_(3e38)
    stack = Stack(model)
    stack.add("a", {"x": Parts("full", {"diff": torch.full((4, 4), -1e38)})})
    stack.fuse()
    assert torch.allclose(model["x"].weight, torch.full((4, 4), 2e38))


def test_one_layer_under_two_paths_is_changed_once() -> None:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"x": layer, "y": layer})
    parts = Parts("lora", tensors("lora", (4, 4)))
    with pytest.raises(ConfigError, match="Two paths"):
        Stack(model).add("a", {"x": parts, "y": parts})
    assert traces(model) == []


def test_weights_that_others_change_while_fused_are_not_lost_silently() -> None:
    def in_place(model: Net) -> None:
        with torch.no_grad():
            model.conv.weight.add_(1)

    def loaded(model: Net) -> None:
        model.load_state_dict(net().state_dict())

    def assigned(model: Net) -> None:
        model.load_state_dict(net().state_dict(), assign=True)

    def data(model: Net) -> None:
        model.conv.weight.data = torch.zeros_like(model.conv.weight)

    for change in (in_place, loaded, assigned, data):
        model = net()
        stack = Stack(model)
        stack.add("a", style(model))
        stack.fuse()
        change(model)
        present = digest(model)
        for call in (stack.unfuse, stack.disable, lambda: stack.remove("a")):  # noqa: B023
            with pytest.raises(WeightsError, match=r"'?conv.*changed"):
                call()
        assert digest(model) == present
        stack.bake()
        assert digest(model) == present and traces(model) == []


def test_quantised_layers_are_never_fused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), Packed())
    x, parts = (
        torch.randn(2, 4),
        {"0": Parts("lora", tensors("lora", (8, 4))), "1": Parts("lora", tensors("lora", (12, 8)))},
    )
    before, stack = digest(model), Stack(model)
    stack.add("a", parts)
    y = model(x)
    with pytest.raises(ConfigError, match="'1' is quantised"):
        stack.fuse()
    assert digest(model) == before and torch.equal(model(x), y)


def test_a_bias_is_fused_where_there_is_one() -> None:
    model, x = net(), sample()
    parts = {"conv": Parts("full", {"diff_bias": torch.ones(8)}), "body.norm": Parts("full", {"diff": torch.ones(12)})}
    stack = Stack(model)
    stack.add("a", parts)
    hooked = model(x)
    stack.fuse()
    assert torch.allclose(model(x), hooked, atol=1e-5)
    assert torch.equal(model.conv.bias, net().conv.bias + 1) and torch.equal(model.conv.weight, net().conv.weight)
    stack.remove("a")
    assert digest(model) == digest(net())
    stack.add("a", {"body.last": Parts("full", {"diff_bias": torch.ones(6)})})
    with pytest.raises(ConfigError, match="has no bias"):
        stack.fuse()


def test_the_stack_of_a_compiled_network_is_that_of_the_network() -> None:
    model = net()
    Stack(torch.compile(model, backend="eager")).add("a", style(model))
    assert Stack(model).names == ["a"]


OPERATIONS = ("add", "set", "fuse", "unfuse", "remove", "disable", "enable", "swap", "scaled", "to")


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    steps=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2), st.floats(-2, 2, width=16)), max_size=12),
)
def test_every_sequence_ends_where_it_began(dtype: torch.dtype, steps: list[tuple[str, int, float]]) -> None:
    """Names and values of the state dict, and the output bit by bit; and what the deltas add is what fusing adds."""
    model, x = net(dtype), sample(dtype)
    before, y, stack = digest(model), model(x), Stack(model)
    names = ("a", "b.1", "c%2E")
    expected: dict[str, float] = {}
    for operation, which, weight in steps:
        name = names[which]
        present, fused = name in stack.names, name in stack.fused
        if operation == "add" and not present:
            stack.add(name, style(model, seed=which * 30), scale=weight)
            expected[name] = weight
        elif operation == "set" and not stack.fused:
            expected = {other: weight for other in stack.names if other != name}
            stack.set(expected)
        elif operation == "fuse" and present and not fused and stack.enabled and name in expected:
            stack.fuse([name])
        elif operation == "unfuse" and fused:
            stack.unfuse([name])
        elif operation == "remove" and present:
            stack.remove(name)
            expected.pop(name, None)
        elif operation == "disable":
            stack.disable()
        elif operation == "enable":
            stack.enable()
        elif operation == "swap" and present:
            stack.swap(name, style(model, seed=which * 30))
        elif operation == "scaled" and not stack.fused:
            with stack.scaled(weight):
                model(x)
        elif operation == "to":
            model.to(dtype)
    if dtype == torch.float32:
        wanted = net()
        for name, weight in expected.items() if stack.enabled else ():
            wanted = by_hand(wanted, style(wanted, seed=names.index(name) * 30), weight)
        assert torch.allclose(model(x), wanted(x), atol=1e-3, rtol=1e-3)
    for name in stack.names:
        stack.remove(name)
    assert digest(model) == before and torch.equal(model(x), y) and traces(model) == []


def test_a_trained_adapter_keeps_its_parameters_when_values_are_read_into_it() -> None:
    model, new = net(), style(net(), seed=9)
    stack, given = Stack(model), style(model)
    kept = copy.deepcopy(given)
    stack.add("a", given, trainable=True)
    own = [p for p in model.parameters() if p.requires_grad]
    stack.swap("a", new)
    now = [p for p in model.parameters() if p.requires_grad]
    assert len(own) == len(now) > 0 and all(one is other for one, other in zip(own, now, strict=True))
    assert torch.equal(stack.delta("a", "conv").down.flatten(), new["conv"].tensors["down"].flatten())
    assert torch.equal(given["conv"].tensors["down"], kept["conv"].tensors["down"])
