"""Rules: names in both directions, operations with their inverses."""

from __future__ import annotations

import pytest
import torch

from langevin.core.errors import WeightsError
from langevin.weights import ops
from langevin.weights.checkpoint import Converted, MemoryFile, Reverted
from langevin.weights.rules import Rules, below, renamed, rule

A, B = torch.arange(24.0).view(6, 4), torch.arange(6.0)
KERNEL = torch.arange(48.0).view(2, 3, 2, 4)

REVERSIBLE = {
    "same": (ops.Same(), [A]),
    "split": (ops.Split(3), [A]),
    "split by sizes": (ops.Split((1, 5)), [A]),
    "split columns": (ops.Split(2, dim=1), [A]),
    "join": (ops.Join((6, 6)), [A, A + 1]),
    "transpose": (ops.Transpose(), [A]),
    "transpose of a bias": (ops.Transpose(), [B]),
    "permute": (ops.Permute((3, 2, 0, 1)), [KERNEL]),
    "permute of a bias": (ops.Permute((3, 2, 0, 1)), [B]),
    "squeeze": (ops.Squeeze(), [A.view(6, 4, 1, 1)]),
    "unsqueeze": (ops.Unsqueeze(), [A]),
}


@pytest.mark.parametrize("op, tensors", REVERSIBLE.values(), ids=list(REVERSIBLE))
def test_every_operation_is_undone_by_its_inverse(op, tensors) -> None:
    back = op.inverse(op(tensors))
    assert len(back) == len(tensors)
    assert all(torch.equal(one, other) for one, other in zip(back, tensors, strict=True))
    assert op.inverse.inverse == op


@pytest.mark.parametrize("op, tensors", REVERSIBLE.values(), ids=list(REVERSIBLE))
def test_every_operation_tells_shapes_without_values(op, tensors) -> None:
    shadows = op([tensor.to("meta") for tensor in tensors])
    assert [tuple(t.shape) for t in shadows] == [tuple(t.shape) for t in op(tensors)]


def test_what_the_operations_do() -> None:
    assert torch.equal(ops.Permute((3, 2, 0, 1))([KERNEL])[0], KERNEL.permute(3, 2, 0, 1))
    assert [tuple(t.shape) for t in ops.Split(3)([A])] == [(2, 4)] * 3
    assert torch.equal(ops.Transpose()([A])[0], A.T) and ops.Transpose()([B])[0] is B
    assert ops.Squeeze()([A])[0] is A, "a matrix is one already"


BLOCKS = Rules(
    [
        rule("stem", "conv_in"),
        rule("blocks.{}", "layers.{}"),
        *below("blocks.{}.attn", "layers.{}.attention", renamed({"proj": "to_out"})),
        rule("blocks.{}.attn.qkv", [f"layers.{{}}.attention.to_{x}" for x in "qkv"], ops.Split(3)),
        rule("blocks.0.special", "first"),
        rule("old_stem", "conv_in", old=True),
    ]
)


def test_the_rule_that_knows_most_of_a_name_counts() -> None:
    found = {
        name: BLOCKS.find(name).targets
        for name in ("stem.weight", "blocks.12.norm.bias", "blocks.3.attn.proj.weight", "blocks.0.special.bias")
    }
    assert found == {
        "stem.weight": ("conv_in.weight",),
        "blocks.12.norm.bias": ("layers.12.norm.bias",),
        "blocks.3.attn.proj.weight": ("layers.3.attention.to_out.weight",),
        "blocks.0.special.bias": ("first.bias",),
    }
    assert BLOCKS.find("blocks.1.special.bias").targets == ("layers.1.special.bias",)
    assert BLOCKS.find("blocks.1.attn.qkv.weight").targets == tuple(f"layers.1.attention.to_{x}.weight" for x in "qkv")


@pytest.mark.parametrize("name", ["stems.weight", "block.1.norm", "blocks.x.norm", "", "weight"])
def test_a_name_that_no_rule_knows_is_foreign(name) -> None:
    assert BLOCKS.find(name) is None
    assert BLOCKS.plan([name]).foreign == [name]


def test_rules_turn_around_without_older_spellings() -> None:
    assert BLOCKS.find("old_stem.bias").targets == ("conv_in.bias",)
    assert BLOCKS.inverse.find("conv_in.bias").targets == ("stem.bias",)
    plan = BLOCKS.inverse.plan(["layers.2.attention.to_q.bias", "layers.2.attention.to_k.bias"])
    assert plan.moves == [] and plan.partial[0].targets == ("blocks.2.attn.qkv.bias",)


def test_tensors_go_there_and_back() -> None:
    file = {"stem.weight": A, "blocks.0.attn.qkv.weight": A, "blocks.0.attn.qkv.bias": B, "blocks.7.norm.weight": B}
    opened = Converted(MemoryFile(file), BLOCKS, names=file)
    assert opened.shapes["layers.0.attention.to_k.weight"] == (2, 4)
    model = opened.load(opened.shapes, dtype=None, device=torch.device("cpu"), check_finite=True)
    assert torch.equal(model["layers.0.attention.to_v.bias"], B[4:])
    back = Reverted(model, BLOCKS)
    assert set(back) == set(file) and all(torch.equal(back[name], file[name]) for name in file)


def test_results_do_not_hold_on_to_larger_tensors() -> None:
    file = {"blocks.0.attn.qkv.weight": A}
    opened = Converted(MemoryFile(file), BLOCKS, names=file)
    model = opened.load(opened.shapes, dtype=torch.float16, device=torch.device("cpu"), check_finite=True)
    for value in model.values():
        assert value.dtype == torch.float16 and value.untyped_storage().nbytes() == value.nbytes


def test_neighbours_that_are_missing_are_named() -> None:
    rules = Rules([rule(["q", "k"], "qk", ops.Join(2))])
    with pytest.raises(WeightsError, match=r"lacks net\.k\.weight"):
        Converted(MemoryFile({"net.q.weight": A}), rules, names=["net.q.weight"], prefix="net.")
    with pytest.raises(WeightsError, match="no place for"):
        Reverted({"v": A}, rules)


def test_shapes_that_an_operation_cannot_take_are_damage() -> None:
    file = {"blocks.0.attn.qkv.weight": torch.zeros(())}
    with pytest.raises(WeightsError, match=r"damaged or of another layout: blocks\.0\.attn\.qkv\.weight \[\]"):
        Converted(MemoryFile(file), BLOCKS, names=file)


def test_two_names_for_one_tensor_are_refused() -> None:
    file = {"stem.weight": A, "old_stem.weight": A}
    with pytest.raises(WeightsError, match="under two names"):
        Converted(MemoryFile(file), BLOCKS, names=file)


def test_weights_that_are_not_finite_are_refused_whatever_their_rule() -> None:
    for name in ("stem.weight", "blocks.0.attn.qkv.weight"):
        file = {name: A.clone().fill_(float("nan"))}
        opened = Converted(MemoryFile(file), BLOCKS, names=file)
        with pytest.raises(WeightsError, match="NaN"):
            opened.load(opened.shapes, dtype=None, device=torch.device("cpu"), check_finite=True)
