"""Every algorithm against an independent computation in float64, on every kind of layer it fits."""

from __future__ import annotations

import copy
import importlib
import re

import pytest
import torch
from torch import Tensor, nn

from langevin.adapters.fitting import build
from langevin.adapters.layers import applied
from langevin.core.errors import ConfigError
from langevin.weights.dialects.parts import Parts
from tests.adapters.making import Packed, drawn, tensors

LAYERS = {
    "linear": lambda: nn.Linear(8, 12),
    "square": lambda: nn.Linear(8, 8, bias=False),
    "conv1d": lambda: nn.Conv1d(8, 12, 3, stride=2, padding=1),
    "conv2d": lambda: nn.Conv2d(8, 12, 3, padding=1, dilation=2),
    "circular": lambda: nn.Conv2d(8, 12, (1, 3), padding=(0, 1), padding_mode="circular"),
    "plain": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "point": lambda: nn.Conv2d(8, 12, 1),
    "conv3d": lambda: nn.Conv3d(8, 12, (3, 1, 1), padding=(1, 0, 0), bias=False),
    "grouped": lambda: nn.Conv2d(16, 12, 3, groups=2),
}
INPUTS = {0: (3, 5), 1: (3, 9), 2: (3, 7, 7), 3: (2, 5, 4, 4)}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return a layer with an input."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    shape = layer.weight.shape
    batch, *size = INPUTS[len(shape) - 2]
    channels = shape[1] * getattr(layer, "groups", 1)
    return layer, torch.randn(batch, *size, channels) if len(shape) == 2 else torch.randn(batch, channels, *size)


FORMS = ("lora", "lora mid", "lora bias", "loha", "loha tucker", "lokr", "lokr second", "lokr both", "lokr tucker")
FORMS += ("oft", "oft shared", "full")
ALPHA = 3.0


def by_hand(parts: Parts, weight: Tensor) -> Tensor:
    """Return the dense difference in float64 from the formulas of the papers."""
    t, w = {name: tensor.double() for name, tensor in parts.tensors.items()}, weight.detach().double()
    letters = "klm"[: w.dim() - 2]
    if parts.algorithm == "full":
        return t["diff"]
    if parts.algorithm == "oft":
        count = 1 if t["blocks"].dim() == 2 else len(t["blocks"])
        whole = torch.block_diag(
            *t["blocks"].reshape(count, *t["blocks"].shape[-2:]).repeat(w.shape[0] // 4 // count, 1, 1)
        )
        skew = whole - whole.T
        norm = (skew if count > 1 else skew[:4, :4]).norm()
        skew = skew * min(1.0, (parts.alpha or float("inf")) * w.shape[0] / float(norm))
        eye = torch.eye(len(whole), dtype=torch.float64)
        rotation = ((eye + skew) @ torch.linalg.inv(eye - skew)).T
        turned = (rotation @ w.flatten(1)).reshape(w.shape)
        return (
            turned * t.get("rescale", torch.ones(())).reshape(-1, *([1] * (w.dim() - 1)) if "rescale" in t else ()) - w
        )
    rank: int | None = None
    if parts.algorithm == "lora":
        down, up, rank = t["down"].flatten(1), t["up"].flatten(1), len(t["down"])
        if "mid" in t:
            found = torch.einsum(f"or,rs{letters},si->oi{letters}", up, t["mid"], down)
        else:
            found = torch.einsum("or,ri->oi", up, down).reshape(w.shape)
    else:
        halves = []
        for i in "12":
            if f"w{i}" in t:
                halves.append(t[f"w{i}"])
            elif f"t{i}" in t:
                product = f"rs{letters},ro,si->oi{letters}"
                halves.append(torch.einsum(product, t[f"t{i}"], t[f"w{i}_a"], t[f"w{i}_b"]))
            else:
                halves.append(torch.einsum("or,ri->oi", t[f"w{i}_a"], t[f"w{i}_b"]))
        rank = len(t["w1_b"]) if "w1_b" in t else len(t["w2_b"]) if "w2_b" in t else None
        if parts.algorithm == "loha":
            found = (halves[0] * halves[1]).reshape(w.shape)
        else:
            (_, b), c = halves[0].shape, w.shape[0] // halves[0].shape[0]
            second = halves[1].reshape(c, w.shape[1] // b, -1)
            found = torch.einsum("ab,cdk->acbdk", halves[0], second).reshape(w.shape)
    found = found * (1.0 if rank is None or parts.alpha is None else parts.alpha / rank)
    if "magnitude" not in t:
        return found
    changed = w + found
    if t["magnitude"].dim() > 1 and t["magnitude"].shape[0] == 1:
        norm = changed.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *([1] * len(letters)))
    else:
        norm = changed.flatten(1).norm(dim=1).reshape(-1, *([1] * (w.dim() - 1)))
    magnitude = t["magnitude"].reshape(norm.shape)
    return changed * magnitude / norm - w


def agrees(parts: Parts, layer: nn.Module, x: Tensor) -> None:
    """Check the dense difference against the formulas, and the forward pass against the dense difference."""
    delta, expected = build(parts, layer), by_hand(parts, layer.weight)
    found = delta.dense(layer.weight)
    assert found.shape == layer.weight.shape
    assert torch.allclose(found.double(), expected, atol=1e-6, rtol=1e-5)
    total = layer.weight.detach().clone()
    delta.accumulate_(total, layer.weight.detach(), -0.5)
    assert torch.allclose(total.double(), layer.weight.double() - 0.5 * expected, atol=1e-6, rtol=1e-5)
    delta.weigh(-0.5)
    bias = delta.dense_bias()
    wanted = applied(layer, x.double(), expected, None if bias is None else bias.double()) * -0.5
    for output in (layer(x), None):
        added = delta(x, layer, layer.weight, output)
        assert torch.allclose(added.double(), wanted, atol=1e-5, rtol=1e-4), (added - wanted).abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_dense_difference_is_that_of_the_papers(name: str, form: str) -> None:
    layer, x = made(name)
    for alpha in (None, ALPHA):
        agrees(Parts(form.split()[0], tensors(form, layer.weight.shape), alpha), layer, x)


@pytest.mark.parametrize("form", ("oft", "oft shared"))
def test_a_constraint_bounds_the_rotation(form: str) -> None:
    layer, x = made("linear")
    held = tensors(form, layer.weight.shape)
    agrees(Parts("oft", held, 0.01), layer, x)
    bound, free = (build(Parts("oft", held, alpha), layer).turn().norm() for alpha in (0.01, None))
    assert bound < free / 2


@pytest.mark.parametrize("axis", (0, 1))
@pytest.mark.parametrize("form", ("lora", "lora mid", "loha", "lokr both"))
@pytest.mark.parametrize("name", LAYERS)
def test_dora_on_either_axis(name: str, form: str, axis: int) -> None:
    layer, x = made(name)
    draw, shape = drawn(9), layer.weight.shape
    sizes = [shape[i] if i == axis else 1 for i in range(len(shape))]
    held = tensors(form, shape) | {"magnitude": 1 + draw(*sizes)}
    agrees(Parts(form.split()[0], held, ALPHA), layer, x)


def test_dora_of_peft_has_one_number_per_output() -> None:
    """A vector for linear layers, and (1, out, 1, 1) for convolutions."""
    for name, size in (("linear", (12,)), ("conv2d", (1, 12, 1, 1))):
        layer, _ = made(name)
        held = tensors("lora", layer.weight.shape) | {"magnitude": 1 + drawn(9)(*size)}
        delta = build(Parts("lora", held), layer)
        rows = held | {"magnitude": held["magnitude"].reshape(12, *([1] * (layer.weight.dim() - 1)))}
        assert torch.equal(delta.dense(layer.weight), build(Parts("lora", rows), layer).dense(layer.weight))
        assert delta.parts().tensors["magnitude"].shape == size


def test_linear_and_pointwise_files_fit_each_other() -> None:
    for name, form in (("point", "lora flat"), ("linear", "lora point")):
        layer, x = made(name)
        agrees(Parts("lora", tensors(form, layer.weight.shape), 1.0), layer, x)


@pytest.mark.parametrize("layer", (nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.Embedding(10, 8)), ids=repr)
def test_full_differences_of_norms_and_embeddings(layer: nn.Module) -> None:
    draw = drawn(4)
    x = torch.randint(0, 10, (3, 5)) if isinstance(layer, nn.Embedding) else draw(3, 8, 4)
    x = x.mT if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) else x
    biased = isinstance(getattr(layer, "bias", None), Tensor)
    held = {"diff": draw(*layer.weight.shape)} | ({"diff_bias": draw(*layer.bias.shape)} if biased else {})
    for names in (set(held), {"diff"}, {"diff_bias"} & set(held)):
        if not names:
            continue
        delta = build(Parts("full", {name: held[name] for name in names}), layer)
        weight = layer.weight + held["diff"] if "diff" in names else layer.weight
        bias = (layer.bias + held["diff_bias"] if "diff_bias" in names else layer.bias) if biased else None
        output = layer(x)
        assert torch.allclose(
            output + delta(x, layer, layer.weight, output), applied(layer, x, weight, bias), atol=1e-5
        )


@pytest.mark.parametrize("form", FORMS)
def test_parts_come_back_as_they_were(form: str) -> None:
    layer, _ = made("conv2d")
    for alpha in (None, 0.1):
        parts = Parts(form.split()[0], tensors(form, layer.weight.shape), alpha)
        for options in ({}, {"target_rank": 5}, {"target_rank": 2}, {"trainable": True}):
            back = build(parts, layer, **options).parts()
            assert (back.algorithm, back.alpha) == (parts.algorithm, alpha)
            assert {n: t.shape for n, t in back.tensors.items()} == {n: t.shape for n, t in parts.tensors.items()}
            assert all(torch.equal(back.tensors[name], tensor) for name, tensor in parts.tensors.items())


def test_values_are_kept_exactly_unless_a_dtype_is_asked_for() -> None:
    layer = nn.Linear(8, 12).half()
    wide = tensors("lora", layer.weight.shape)
    narrow = {name: tensor.bfloat16() for name, tensor in wide.items()}
    assert build(Parts("lora", wide), layer).down.dtype == torch.float32
    assert build(Parts("lora", narrow), layer).down.dtype == torch.bfloat16
    assert build(Parts("lora", narrow), nn.Linear(8, 12)).down.dtype == torch.float32
    assert build(Parts("lora", wide), layer, dtype=torch.float16).down.dtype == torch.float16
    x = torch.randn(3, 8).half()
    assert build(Parts("lora", wide), layer)(x, layer, layer.weight, None).dtype == torch.float16


def test_some_algorithms_need_the_layers_own_weight() -> None:
    delta = build(Parts("oft", tensors("oft", (12, 8))), nn.Linear(8, 12))
    with pytest.raises(ConfigError, match="changes the layer's own weight: give it"):
        delta.dense()


def test_a_scale_survives_a_cast() -> None:
    layer = nn.Linear(8, 12)
    delta = build(Parts("lora", tensors("lora", layer.weight.shape), 0.7), layer)
    delta.weigh(0.3)
    delta.half()
    assert delta.down.dtype == torch.float16 and delta.scale.dtype == torch.float32
    assert float(delta.scale) == pytest.approx(0.7 / 2 * 0.3, rel=1e-7)


@pytest.mark.parametrize("name", ["linear", "plain"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_trained_delta_multiplies_by_one_no_less_than_by_another_scale(name: str, kind: torch.dtype) -> None:
    layer, x = made(name)
    layer, x = layer.to(kind), x.to(kind)
    parts = Parts("lora", tensors("lora", tuple(layer.weight.shape)), alpha=None)
    fixed, trained = (build(parts, layer, path="layer", trainable=trainable) for trainable in (False, True))
    for weight in (1.0, 0.5, 1.0):
        for delta in (fixed, trained):
            delta.weigh(weight)
        assert fixed(x, layer, None, None).equal(trained(x, layer, None, None)), weight


def test_gradients_reach_every_tensor_of_a_trainable_delta() -> None:
    for form in FORMS:
        layer, x = made("conv2d")
        for magnitude in ({}, {"magnitude": torch.ones(12)}):
            if magnitude and form.split()[0] not in ("lora", "loha", "lokr"):
                continue
            held = tensors(form, layer.weight.shape) | magnitude
            delta = build(Parts(form.split()[0], held), layer, trainable=True)
            delta(x, layer, layer.weight, layer(x)).square().sum().backward()
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in delta.parameters()), form
    assert not any(
        p.requires_grad for p in build(Parts("lora", tensors("lora", layer.weight.shape)), layer).parameters()
    )


WRONG = {
    "another width": (lambda: ("lora", tensors("lora", (12, 6))), r"'down' has the shape \[2, 6\].*\[2, 8\]"),
    "ranks differ": (lambda: ("lora", {"down": torch.ones(2, 8), "up": torch.ones(12, 3)}), r"'up'.*\[12, 2\]"),
    "half": (lambda: ("lora", {"down": torch.ones(2, 8)}), "needs down, up; there is down"),
    "unknown": (lambda: ("lora", {**tensors("lora", (12, 8)), "dwon": torch.ones(2)}), "'dwon'; did you mean 'down'"),
    "indivisible": (lambda: ("lokr", {"w1": torch.ones(5, 2), "w2": torch.ones(2, 4)}), "does not divide"),
    "blocks": (lambda: ("oft", {"blocks": torch.ones(2, 5, 5)}), "do not divide the 12 outputs"),
    "too few": (lambda: ("oft", {"blocks": torch.ones(2, 4, 4)}), r"\[3, 4, 4\]"),
    "magnitude": (lambda: ("lora", {**tensors("lora", (12, 8)), "magnitude": torch.ones(7)}), "'magnitude'"),
    "loose core": (lambda: ("loha", {**tensors("loha", (12, 8)), "t1": torch.ones(2, 2)}), "t1|w1_a"),
    "core of nothing": (lambda: ("lokr", {**tensors("lokr", (12, 8)), "t2": torch.ones(2, 2)}), "'t2' has no meaning"),
    "scalar": (lambda: ("lora", {"down": torch.ones(()), "up": torch.ones(())}), "the file has down"),
    "algorithm": (lambda: ("lara", {}), "did you mean 'lora'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_names_layer_and_shapes(case: str) -> None:
    made_up, message = WRONG[case]
    algorithm, held = made_up()
    with pytest.raises((ConfigError, ValueError), match=message) as caught:
        build(Parts(algorithm, held), nn.Linear(8, 12), path="blocks.0.to_q")
    assert algorithm == "lara" or re.search(r"blocks\.0\.to_q", str(caught.value))


def test_layers_that_cannot_change() -> None:
    for layer in (nn.ConvTranspose2d(4, 4, 3), nn.MultiheadAttention(8, 2).out_proj, nn.SiLU()):
        with pytest.raises(ConfigError, match="not this one"):
            build(Parts("full", {"diff": torch.ones(4, 4)}), layer)
    with pytest.raises(ConfigError, match="not this one"):
        build(Parts("lora", tensors("lora", (8, 8))), nn.LayerNorm(8))
    with pytest.raises(ConfigError, match="larger than target_rank=1"):
        build(Parts("lora", tensors("lora", (12, 8))), nn.Linear(8, 12), target_rank=1)


@pytest.mark.parametrize("layer", (nn.RMSNorm(8), nn.Embedding(10, 8)), ids=repr)
def test_layers_without_a_bias_take_none(layer: nn.Module) -> None:
    held = {"diff": torch.ones_like(layer.weight), "diff_bias": torch.ones(len(layer.weight))}
    with pytest.raises(ConfigError, match="leave 'diff_bias' out"):
        build(Parts("full", held), layer)


def test_quantised_layers_take_products_only() -> None:
    layer, x = Packed(), torch.randn(3, 8)
    parts = Parts("lora", tensors("lora", (12, 8)))
    found = build(parts, layer)(x, layer, layer.weight, layer(x))
    assert torch.allclose(found, x @ by_hand(parts, torch.zeros(12, 8)).float().T, atol=1e-6)
    with pytest.raises(ConfigError, match="is quantised"):
        build(Parts("lora", {**tensors("lora", (12, 8)), "magnitude": torch.ones(12)}), layer)


@pytest.mark.parity
@pytest.mark.parametrize("name", ("linear", "plain", "point"))
def test_dora_is_that_of_peft_at_weight_one(name: str) -> None:
    peft = importlib.import_module("peft")
    layer, x = made(name)
    model = peft.PeftModel(
        nn.ModuleDict({"x": copy.deepcopy(layer)}),
        peft.LoraConfig(r=2, lora_alpha=3, target_modules=["x"], use_dora=True),
    )
    theirs, held = model.base_model.model["x"], tensors("lora", layer.weight.shape)
    vector = theirs.lora_magnitude_vector["default"]
    vector.weight.data *= 1 + drawn(9)(*vector.weight.shape)
    for ours, matrix in (("down", theirs.lora_A), ("up", theirs.lora_B)):
        matrix["default"].weight.data = held[ours].clone()
    delta = build(Parts("lora", {**held, "magnitude": vector.weight.detach()}, 3.0), layer)
    output = layer(x)
    expected = theirs(x)
    assert torch.allclose(output + delta(x, layer, layer.weight, output), expected, atol=1e-5)
    assert not torch.allclose(output, expected, atol=1e-2)
