"""Merging against PEFT's functions where they are deterministic, against closed forms elsewhere."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

from langevin.adapters.fitting import build
from langevin.adapters.merging import COMBINATIONS, METHODS, Recipe, dropped, merge
from langevin.adapters.stack import Stack
from langevin.core.errors import ConfigError, InputError
from langevin.weights.dialects.parts import Parts
from tests.adapters.making import drawn, lora, net, sample, style, tensors


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(combination: str) -> dict:
    """Return what a method needs."""
    sparse = any(name in combination for name in ("ties", "dare", "prune"))
    return {"density": 0.5} if sparse and "dare" not in combination else (
        {"density": 0.5, "generator": seeded()} if sparse else {}
    )  # fmt: skip


def dense(model: nn.Module, parts: dict[str, Parts]) -> dict[str, Tensor]:
    """Return path -> dense difference."""
    found = {}
    for path, part in parts.items():
        layer = model.get_submodule(path)
        found[path] = build(part, layer).dense(layer.weight).detach()
    return found


@pytest.mark.parity
@pytest.mark.parametrize("weights", ((0.6, 1.5), (1.0, -0.7)))
@pytest.mark.parametrize("signs", ("total", "frequency"))
@pytest.mark.parametrize("combination", [name for name in COMBINATIONS if "dare" not in name])
def test_the_same_as_peft(combination: str, signs: str, weights: tuple[float, float]) -> None:
    peft = importlib.import_module("peft")
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(10, 14), "conv": nn.Conv2d(6, 8, 3)})
    ranks = (3, 4) if combination in ("cat", "svd") else (3, 3)
    adapters = [
        {path: lora(layer, rank, int(7 * alpha) + i, alpha) for i, (path, layer) in enumerate(model.items())}
        for rank, alpha in zip(ranks, (2.0, 5.0), strict=True)
    ]
    theirs = peft.PeftModel(
        nn.ModuleDict(model), peft.LoraConfig(r=ranks[0], lora_alpha=2, target_modules=["linear", "conv"]), "a"
    )
    theirs.add_adapter("b", peft.LoraConfig(r=ranks[1], lora_alpha=5, target_modules=["linear", "conv"]))
    for name, adapter in zip("ab", adapters, strict=True):
        for path, parts in adapter.items():
            layer = theirs.base_model.model[path]
            layer.lora_A[name].weight.data = parts.tensors["down"].clone()
            layer.lora_B[name].weight.data = parts.tensors["up"].clone()
    theirs.base_model.add_weighted_adapter(
        ["a", "b"], list(weights), "c", combination_type=combination, majority_sign_method=signs,
        density=options(combination).get("density"), svd_full_matrices=False,
    )  # fmt: skip
    ours = merge(
        model, adapters, weights, combination_type=combination, majority_sign_method=signs,
        **options(combination),
    )  # fmt: skip
    for path, found in dense(model, ours).items():
        expected = theirs.base_model.model[path].get_delta_weight("c").detach()
        assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_one_adapter_with_weight_one_stays_itself(combination: str) -> None:
    model = net()
    given = options(combination) | ({"density": 1.0} if "density" in options(combination) else {})
    merged = merge(model, [style(model)], [1.0], combination_type=combination, **given)
    for path, found in dense(model, merged).items():
        assert torch.allclose(found, dense(model, style(model))[path], atol=1e-6)


def test_cat_and_svd_are_the_sum() -> None:
    model, x = net(), sample()
    a, b = style(model), style(model, rank=3, seed=40, alpha=None)
    stack = Stack(model)
    stack.add("a", a, scale=0.5)
    stack.add("b", b, scale=-2.0)
    both = model(x)
    for name, more in (("cat", {}), ("svd", {"svd_rank": 5})):
        merged = merge(net(), [a, b], [0.5, -2.0], combination_type=name, **more)
        assert all(len(part.tensors["down"]) <= 5 for part in merged.values())
        other = net()
        Stack(other).add("merged", merged)
        assert torch.allclose(other(x), both, atol=1e-4)


def test_the_best_approximation_of_a_rank() -> None:
    model = net()
    merged = merge(model, [style(model), style(model, seed=40)], [1.0, 1.0], combination_type="svd", svd_rank=1)
    for path, found in dense(model, merged).items():
        whole = dense(model, style(model))[path] + dense(model, style(model, seed=40))[path]
        singular = torch.linalg.svdvals(whole.flatten(1))
        assert float((whole - found).norm()) == pytest.approx(float(singular[1:].norm()), rel=1e-4)


def test_clamping_cuts_the_largest_entries_of_the_factors() -> None:
    model = net()
    plain, clamped = (merge(model, [style(model)], [1.0], svd_clamp=clamp)["conv"].tensors for clamp in (None, 0.9))
    entries = torch.cat([plain["up"].flatten(), plain["down"].flatten()])
    limit = torch.quantile(torch.cat([entries, -entries]), 0.9)
    for name in ("up", "down"):
        assert torch.allclose(clamped[name], plain[name].clamp(-limit, limit), atol=0.02)
        assert float(clamped[name].abs().max()) < float(plain[name].abs().max())


@pytest.mark.parametrize("form", ("loha", "lokr both", "oft", "full", "lora mid", "dora"))
def test_other_algorithms_merge_as_dense_differences(form: str) -> None:
    layer = nn.ModuleDict({"x": nn.Linear(8, 12)})
    held = tensors("lora" if form == "dora" else form, (12, 8))
    if form == "dora":
        held["magnitude"] = 1 + drawn(9)(12)
    other, plain = Parts(form.split()[0].replace("dora", "lora"), held, 1.0), lora(layer["x"], 2, 1)
    merged = merge(layer, [{"x": other}, {"x": plain}], [0.5, 2.0], svd_rank=8)
    expected = 0.5 * dense(layer, {"x": other})["x"] + 2 * dense(layer, {"x": plain})["x"]
    assert torch.allclose(dense(layer, merged)["x"], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="take 'svd'"):
        merge(layer, [{"x": other}, {"x": plain}], [0.5, 2.0], combination_type="linear")


def test_biases_norms_and_layers_of_one_adapter_only() -> None:
    model = net()
    one = {
        "conv": Parts("lora", tensors("lora bias", (8, 3, 3, 3)), 2.0),
        "body.norm": Parts("full", {"diff": torch.ones(12)}),
    }
    two = {"body.norm": Parts("full", {"diff": torch.ones(12), "diff_bias": torch.ones(12)})}
    for combination in ("cat", "svd"):
        merged = merge(model, [one, two], [0.5, 2.0], combination_type=combination)
        assert torch.allclose(merged["conv"].tensors["bias"], 0.5 * one["conv"].tensors["bias"], atol=1e-6)
        assert torch.equal(merged["body.norm"].tensors["diff"], torch.full((12,), 2.5))
        assert torch.equal(merged["body.norm"].tensors["diff_bias"], torch.full((12,), 2.0))


def test_fused_adapters_do_not_change_what_dora_is_merged_to() -> None:
    model = nn.ModuleDict({"x": nn.Linear(8, 12)})
    parts = {"x": Parts("lora", {**tensors("lora", (12, 8)), "magnitude": 1 + drawn(9)(12)})}
    before = merge(model, [parts], [1.0], svd_rank=8)
    stack = Stack(model)
    stack.add("other", {"x": lora(model["x"], 2, 1)})
    stack.fuse()
    after = merge(model, [parts], [1.0], svd_rank=8)
    assert all(torch.equal(after["x"].tensors[name], tensor) for name, tensor in before["x"].tensors.items())


def test_signs_are_elected_by_values_or_by_numbers() -> None:
    """Entry by entry: 3 against -1 and -1; agreement; a tie of values, where the positive sign wins."""
    given = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([-1.0, 2.0, -2.0]), torch.tensor([-1.0, 3.0, 0.0])]
    ones = [1.0, 1.0, 1.0]
    assert METHODS["ties"](given, ones, Recipe()).tolist() == [3.0, 2.0, 2.0]
    assert METHODS["ties"](given, ones, Recipe(signs="frequency")).tolist() == [-1.0, 2.0, 2.0]
    assert METHODS["ties"](given, [1.0, 2.0, 4.0], Recipe(signs="frequency")).tolist() == pytest.approx(
        [-3.0, 17 / 3, 2.0]
    )
    trimmed = METHODS["magnitude_prune"]([torch.tensor([3.0, -5.0, 1.0, 0.5])], [2.0], Recipe(density=0.5))
    assert trimmed.tolist() == [6.0, -10.0, 0.0, 0.0]


def test_dropping_keeps_the_mean_and_follows_the_generator() -> None:
    tensor = torch.full((200, 200), 3.0)
    state = torch.random.get_rng_state()
    first = dropped(tensor, Recipe(0.25, generator=seeded(1)))
    assert torch.equal(first, dropped(tensor, Recipe(0.25, generator=seeded(1))))
    assert not torch.equal(first, dropped(tensor, Recipe(0.25, generator=seeded(2))))
    assert set(first.unique().tolist()) == {0.0, 12.0} and float(first.mean()) == pytest.approx(3.0, rel=0.03)
    assert torch.equal(torch.random.get_rng_state(), state)
    model = net()
    runs = [
        merge(model, [style(model)] * 2, [1.0, 1.0], combination_type="dare_ties", density=0.5, generator=seeded(seed))
        for seed in (3, 3, 4)
    ]
    downs = [run["conv"].tensors["down"] for run in runs]
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])


WRONG = {
    "method": ({"combination_type": "tie"}, "did you mean 'ties'"),
    "signs": ({"combination_type": "ties", "density": 0.5, "majority_sign_method": "sum"}, "majority_sign_method"),
    "no density": ({"combination_type": "ties"}, "density is None"),
    "density": ({"combination_type": "ties", "density": 0.0}, "density is 0.0"),
    "useless density": ({"combination_type": "svd", "density": 0.5}, "other methods take none"),
    "generator": ({"combination_type": "dare_linear", "density": 0.5}, "generator="),
    "rank": ({"svd_rank": 0}, "rank"),
    "useless rank": ({"combination_type": "cat", "svd_rank": 4}, "leave svd_rank and svd_clamp out"),
    "useless clamp": ({"combination_type": "cat", "svd_clamp": 0.9}, "leave svd_rank and svd_clamp out"),
    "ranks": ({"combination_type": "linear"}, "one rank, not"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_do_not_fit(case: str) -> None:
    model, (given, message) = net(), WRONG[case]
    with pytest.raises((InputError, ConfigError), match=message):
        merge(model, [style(model), style(model, rank=3)], [1.0, 1.0], **given)


def test_a_rank_is_needed_where_no_adapter_has_one() -> None:
    layer = nn.ModuleDict({"x": nn.Linear(8, 12)})
    whole = {"x": Parts("lokr", tensors("lokr", (12, 8)))}
    with pytest.raises(ConfigError, match="'x': none of the adapters has a rank; give svd_rank="):
        merge(layer, [whole], [1.0])
    found = dense(layer, merge(layer, [whole], [1.0], svd_rank=8))["x"]
    assert torch.allclose(found, dense(layer, whole)["x"], atol=1e-5)


def test_as_many_weights_as_adapters_and_known_layers() -> None:
    model = net()
    with pytest.raises(InputError, match="2 adapters and 1 weights"):
        merge(model, [style(model)] * 2, [1.0])
    with pytest.raises(ConfigError, match=r"there is 'conv'"):
        merge(model, [{"covn": lora(model.conv, 2, 1)}], [1.0])
