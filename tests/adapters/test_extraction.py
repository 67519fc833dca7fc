"""LoRAs from the difference of two checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from langevin.adapters.extraction import extract
from langevin.adapters.factoring import Truncation, decomposed, decomposed_product
from langevin.adapters.stack import Stack
from langevin.core.errors import ConfigError, InputError, NonFiniteError
from tests.adapters.making import Net, digest, drawn, net, sample, style


def tuned(rank: int = 2) -> Net:
    """Return the network with a LoRA fused for good."""
    model = net()
    stack = Stack(model)
    stack.add("a", style(model, rank=rank))
    stack.fuse()
    stack.bake()
    return model


@pytest.mark.parametrize("how", ({"rank": 2}, {"energy": 1.0 - 1e-9}, {"rank": 2, "niter": 2}))
def test_a_difference_of_low_rank_comes_back(how: dict) -> None:
    changed, x = tuned(), sample()
    parts, report = extract(changed, net(), **how)
    assert set(parts) == {"conv", "point", "body.first", "body.last"}
    assert report.error < 1e-5 and report.energy > 1 - 1e-9 and not report.omitted
    assert {row.rank for row in report.layers} == {2}
    model = net()
    Stack(model).add("extracted", parts)
    assert torch.allclose(model(x), changed(x), atol=1e-4)
    again, _ = extract(changed.state_dict(), net().state_dict(), **how)
    assert all(torch.equal(again[path].tensors["up"], part.tensors["up"]) for path, part in parts.items())


def test_the_error_is_that_of_the_tail_of_the_spectrum() -> None:
    base, changed = net(), net()
    draw = drawn(8)
    with torch.no_grad():
        for path in ("conv", "body.first"):
            layer = changed.get_submodule(path)
            layer.weight.add_(draw(*layer.weight.shape))
    whole = kept = 0.0
    _, report = extract(changed, base, rank=3)
    for row in report.layers:
        difference = changed.get_submodule(row.path).weight - base.get_submodule(row.path).weight
        squares = torch.linalg.svdvals(difference.detach().double().flatten(1)).square()
        assert row.rank == 3 and row.norm == pytest.approx(float(squares.sum() ** 0.5), rel=1e-5)
        assert row.error == pytest.approx(float((squares[3:].sum() / squares.sum()) ** 0.5), rel=1e-4)
        whole, kept = whole + float(squares.sum()), kept + float(squares[:3].sum())
    assert report.energy == pytest.approx(kept / whole, rel=1e-5)
    for energy in (0.3, 0.8, 0.95):
        _, report = extract(changed, base, energy=energy)
        for row in report.layers:
            assert row.energy >= energy - 1e-6
            _, less = extract(changed, base, rank=max(1, row.rank - 1), layers=f"^{row.path}$")
            assert row.rank == 1 or less.layers[0].energy < energy
    assert "total: error" in str(report) and "body.first: rank" in str(report)


def test_what_a_lora_cannot_hold_is_reported_or_kept() -> None:
    base, changed, x = net(), tuned(), sample()
    with torch.no_grad():
        changed.body["norm"].weight.add_(0.5)
        changed.conv.bias.add_(2)
    parts, report = extract(changed, base, rank=2)
    assert report.omitted == {
        "conv.bias": pytest.approx(2 * 8**0.5, rel=1e-5), "body.norm.weight": pytest.approx(0.5 * 12**0.5, rel=1e-5)
    }  # fmt: skip
    assert report.error > 0.1 and "conv.bias: omitted" in str(report)
    parts, report = extract(changed, base, rank=2, full=True)
    assert report.error < 1e-5 and not report.omitted and parts["body.norm"].algorithm == "full"
    Stack(base).add("extracted", parts)
    assert torch.allclose(base(x), changed(x), atol=1e-4)
    parts, report = extract(changed, net(), rank=2, full=True, layers=r"^body\.")
    assert set(parts) == {"body.norm", "body.first", "body.last"}
    assert set(report.omitted) == {"conv.weight", "conv.bias", "point.weight"}


def test_layers_that_no_adapter_can_change_are_reported() -> None:
    base, changed = nn.Module(), nn.Module()
    for model in (base, changed):
        torch.manual_seed(0)
        model.grow, model.first = nn.ConvTranspose2d(3, 4, 2), nn.Linear(3, 4)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(1)
    parts, report = extract(changed, base, rank=1, full=True)
    assert set(parts) == {"first"} and set(report.omitted) == {"grow.weight", "grow.bias"}
    Stack(base).add("extracted", parts)
    assert extract(changed.state_dict(), base.state_dict(), rank=1)[0].keys() == {"first", "grow"}


def test_extraction_reads_and_changes_nothing_else() -> None:
    base, changed = net(), tuned()
    before = digest(base), digest(changed), torch.random.get_rng_state()
    parts, report = extract(changed, base, rank=1, clamp=0.9, dtype=torch.float16, niter=1)
    assert (digest(base), digest(changed)) == before[:2] and torch.equal(torch.random.get_rng_state(), before[2])
    assert all(tensor.dtype == torch.float16 for part in parts.values() for tensor in part.tensors.values())
    unclamped = extract(changed, base, rank=1)[1]
    assert report.error > unclamped.error
    assert report.unchanged == len(base.state_dict()) - 4


def test_checkpoints_that_do_not_belong_together() -> None:
    base = net()
    renamed = {name.replace("first", "frist"): tensor for name, tensor in base.state_dict().items()}
    with pytest.raises(ConfigError, match=r"'body.first.weight' \(there is 'body.frist.weight'\)"):
        extract(base, renamed, rank=1)
    with pytest.raises(ConfigError, match=r"9 tensors are equal"):
        extract(base, copy.deepcopy(base), rank=1)
    with pytest.raises(ConfigError, match=r"shape \[4, 3\].*\[3, 4\]"):
        extract(nn.Linear(3, 4), nn.Linear(4, 3), rank=1)
    broken = net()
    with torch.no_grad():
        broken.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"conv\.weight"):
        extract(broken, base, rank=1)
    numbers: tuple[dict[str, Tensor], ...] = (
        {"x.weight": torch.ones(2, 2, dtype=torch.int8)},
        {"x.weight": torch.zeros(2, 2)},
    )
    same = [{"x.weight": torch.eye(2) * k, "x.ids": torch.arange(3)} for k in (2, 1)]
    assert extract(*same, rank=1)[1].unchanged == 1
    with pytest.raises(ConfigError, match="whole numbers"):
        extract(*numbers, rank=1)
    both = ({"energy": 0.5, "niter": 2}, {"rank": 1, "clamp": 0.5}, {"rank": 1, "niter": -1})
    for wrong in ({}, {"rank": 0}, {"energy": 1.5}, *both):
        with pytest.raises(InputError):
            extract(tuned(), base, **wrong)


def test_decompositions_agree() -> None:
    draw = drawn(3)
    up, down = draw(40, 5), draw(5, 60)
    rank_three = (Truncation(3), Truncation(3, niter=3), Truncation(3, niter=0))
    for truncation in (*rank_three, Truncation(8), Truncation(energy=0.9)):
        u, s, vh = decomposed(up @ down, truncation)
        left, singular, right = decomposed_product(up, down, truncation)
        assert torch.allclose(s, singular, rtol=1e-4) and torch.allclose(
            (u * s) @ vh, (left * singular) @ right, atol=1e-4
        )
        assert len(s) <= 5
