"""FID, KID, precision and recall: closed forms, states that add up, and intervals that say what they promise."""

from __future__ import annotations

import importlib
import pickle
from dataclasses import replace

import pytest
import torch

from langevin.core.errors import InputError, NonFiniteError
from langevin.evaluation.distances import (
    DISTANCES,
    compare_distance,
    distance,
    frechet,
    inside,
    kernel,
    kernel_distance,
    kernel_subsets,
    precision_and_recall,
    radii,
)
from langevin.evaluation.states import Features, Moments, Scores

WIDE = torch.linspace(0.3, 2, 8, dtype=torch.float64)


def drawn(count: int, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)).double() * WIDE * scale + shift


def exact(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    """Return moments that are given, not estimated."""
    return Moments(1001, mean, covariance * 1000)


def test_fid_of_gaussians_that_share_axes_is_the_closed_form() -> None:
    turn = torch.linalg.qr(drawn(8, seed=3)).Q
    one, two, gap = torch.linspace(1, 4, 8).double(), torch.linspace(3, 0, 8).double(), torch.full((8,), 0.5).double()
    first = exact(torch.zeros(8).double(), turn @ one.diag() @ turn.T)
    second = exact(gap, turn @ two.diag() @ turn.T)
    wanted = gap.square().sum() + (one.sqrt() - two.sqrt()).square().sum()
    assert frechet(first, second) == pytest.approx(wanted.item(), abs=1e-9)
    assert frechet(first, first) == pytest.approx(0, abs=1e-9)


def test_fid_of_any_two_gaussians_takes_the_root_of_the_product() -> None:
    linalg = importlib.import_module("scipy.linalg")
    one, two = Moments.of(drawn(50)), Moments.of(drawn(60, seed=1, shift=0.3) @ drawn(8, seed=2))
    product = torch.trace(torch.as_tensor(linalg.sqrtm((one.covariance @ two.covariance).numpy()).real))
    wanted = (one.mean - two.mean).square().sum() + torch.trace(one.covariance + two.covariance) - 2 * product
    assert frechet(one, two) == pytest.approx(wanted.item(), rel=1e-9)


def test_fid_with_fewer_pictures_than_features_needs_no_regulariser() -> None:
    same = Moments.of(drawn(3))
    assert frechet(same, same) == pytest.approx(0, abs=1e-9)
    assert frechet(same, Moments.of(drawn(3) + 2)) == pytest.approx(8 * 4, rel=1e-9)


def test_fid_ignores_a_far_common_mean() -> None:
    one, two = drawn(100), drawn(100, seed=1)
    assert frechet(Moments.of(one + 1e6), Moments.of(two + 1e6)) == pytest.approx(
        frechet(Moments.of(one), Moments.of(two)), rel=1e-6
    )


def test_kid_is_the_mean_over_pairs_without_selves() -> None:
    one, two = drawn(6), drawn(5, seed=1, shift=0.4)
    within = [sum((x @ y / 8 + 1) ** 3 for i, x in enumerate(s) for j, y in enumerate(s) if i != j) for s in (one, two)]
    across = sum((x @ y / 8 + 1) ** 3 for x in one for y in two)
    wanted = within[0] / 30 + within[1] / 20 - 2 * across / 30
    assert kernel_distance(one, two) == pytest.approx(wanted.item(), abs=1e-12)


def test_kid_of_equal_distributions_is_0_on_average() -> None:
    found = torch.tensor([kernel_distance(drawn(12, seed=k), drawn(9, seed=500 + k)) for k in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20
    biased = torch.tensor(
        [(kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean()).item()
         for a, b in ((drawn(12, seed=k), drawn(9, seed=500 + k)) for k in range(400))]
    )  # fmt: skip
    assert biased.mean() > 10 * biased.std() / 20


def test_kid_of_subsets_has_the_same_mean() -> None:
    one, two = drawn(40), drawn(50, seed=1, shift=0.4)
    found = kernel_subsets(one, two, subsets=400, size=20)
    assert len(found) == 400
    assert abs(found.mean() - kernel_distance(one, two)) < 4 * found.std() / 20
    assert torch.equal(found, kernel_subsets(one, two, subsets=400, size=20))
    assert kernel_subsets(one, two[:40], subsets=2, size=40)[0] == pytest.approx(kernel_distance(one, two[:40]))
    with pytest.raises(InputError, match="Subsets of 41 cannot be drawn from 40 and 50"):
        kernel_subsets(one, two, size=41)


def test_precision_and_recall_of_clusters() -> None:
    """Made pictures fill one of two clusters, and a third of them lie far from both."""
    left, right, far = drawn(40, scale=0.1), drawn(40, seed=1, scale=0.1, shift=10), drawn(15, seed=2, shift=-50)
    real = Features().add(torch.cat([left, right]))
    made = Features().add(torch.cat([left[:30] + 1e-4, far]))
    precision, recall = precision_and_recall(made, real)
    assert precision.value == pytest.approx(30 / 45) and recall.value == pytest.approx(0.5, abs=0.05)
    assert 0 <= precision.low < precision.value < precision.high <= 1
    perfect = precision_and_recall(real, real)
    assert [each.value for each in perfect] == [1, 1]


def test_radii_are_those_of_the_neighbours() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert radii(line, 1).tolist() == [1, 1, 2, 4]
    assert radii(line, 2).tolist() == [3, 2, 3, 6]
    assert inside(torch.tensor([[11.0], [11.1]]), line, neighbours=1).tolist() == [1, 0]
    assert inside(torch.ones(2, 1), torch.ones(5, 1)).tolist() == [1, 1]


@pytest.mark.parametrize("parts", [(50,), (1, 49), (7, 0, 13, 30)])
def test_states_of_parts_add_up_to_the_whole(parts) -> None:
    rows = drawn(50)
    whole = Features(keep=20).add(rows)
    pieces = [Features(keep=20).add(piece) if len(piece) else Features(keep=20) for piece in rows.split(list(parts))]
    for order in (pieces, pieces[::-1]):
        both = sum(order, Features(keep=20))
        assert both.keys == whole.keys and torch.equal(both.rows, whole.rows) and len(both) == 50
        assert torch.allclose(both.moments.mean, whole.moments.mean, atol=1e-13)
        assert torch.allclose(both.moments.scatter, whole.moments.scatter, atol=1e-11)
    assert pickle.loads(pickle.dumps(whole)).keys == whole.keys


def test_the_order_of_pictures_changes_nothing() -> None:
    one, real = drawn(40), Features().add(drawn(30, seed=1))
    turned = Features().add(one.flip(0))
    for name in ("FID", "KID"):
        first = distance(name, Features().add(one), real, resamples=50)
        again = distance(name, turned, real, resamples=50)
        assert (first.value, first.low, first.high) == pytest.approx((again.value, again.low, again.high), rel=1e-9)


def test_what_is_kept_is_a_fair_choice() -> None:
    rows = torch.arange(4000.0)[:, None]
    kept = Features(keep=1000).add(rows, keys=[str(k) for k in range(4000)]).rows
    assert len(kept) == 1000 and abs(kept.mean() - 2000) < 4 * 4000 / 12**0.5 / 1000**0.5


def test_sets_keep_the_same_prompts() -> None:
    prompts = [str(k // 2) for k in range(60)]
    one, two = (Features(keep=20).add(drawn(60, seed=k), groups=prompts) for k in (1, 2))
    assert one.kinds == two.kinds and len(one.kinds) == 10
    assert compare_distance("KID", one, two, one, resamples=50).count == 10


def test_a_part_tells_the_spread_of_the_whole(monkeypatch) -> None:
    made, real = Features().add(drawn(1200)), Features().add(drawn(1200, seed=1, shift=0.5))
    whole = distance("FID", made, real)
    monkeypatch.setitem(DISTANCES, "FID", replace(DISTANCES["FID"], rows=300))
    part = distance("FID", made, real)
    assert part.value == whole.value and part.count == 1200
    assert part.high - part.low == pytest.approx(whole.high - whole.low, rel=0.35)


@pytest.mark.parametrize("name", ["FID", "KID"])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_intervals_hold_what_they_promise(name, shift) -> None:
    """At least about 95 % of the intervals hold the mean of the figure, and they are no barn doors."""
    found = []
    for k in range(60):
        made, real = (Features().add(drawn(40, seed=2 * k + side, shift=shift * side)) for side in (0, 1))
        found.append(distance(name, made, real, resamples=100, seed=k))
    values = torch.tensor([each.value for each in found])
    assert sum(each.low <= values.mean() <= each.high for each in found) >= 52
    assert sum(each.high - each.low for each in found) / 60 < 2 * 4 * values.std()


@pytest.mark.parametrize("name", ["FID", "KID"])
def test_a_nearer_set_is_better_and_a_like_one_is_not(name) -> None:
    prompts = [str(k % 30) for k in range(60)]
    real = Features().add(drawn(80))
    near, like, far = (
        Features().add(drawn(60, seed=k, shift=shift), groups=prompts) for k, shift in ((1, 0.0), (2, 0.0), (3, 0.8))
    )
    assert compare_distance(name, near, far, real, resamples=100).verdict == "better"
    assert compare_distance(name, far, near, real, resamples=100).verdict == "worse"
    assert compare_distance(name, near, like, real, resamples=100).verdict == "no difference seen"
    same = compare_distance(name, near, near, real, resamples=100)
    assert (same.value, same.low, same.high, same.count) == (0, 0, 0, 30)
    with pytest.raises(InputError, match="do not show the same prompts"):
        compare_distance(name, near, Features().add(drawn(60)), real)


def test_distances_say_what_is_wrong() -> None:
    one, many = Features().add(drawn(1)), Features().add(drawn(9))
    for name in ("FID", "KID"):
        with pytest.raises(InputError, match="at least two pictures"):
            distance(name, one, many)
        with pytest.raises(InputError, match=r"8 and 3 features|3 and 8 features"):
            distance(name, many, Features().add(drawn(9)[:, :3]))
    with pytest.raises(InputError, match="at least 4 pictures; there are 1"):
        precision_and_recall(one, many)
    with pytest.raises(InputError, match="at least 20"):
        distance("KID", many, many, resamples=5)
    with pytest.raises(InputError, match=r"shape \(pictures, features\), not \(8,\)"):
        Features().add(drawn(1)[0])
    with pytest.raises(InputError, match="9 rows of features came with 1 keys"):
        Features().add(drawn(9), keys=["a"])
    with pytest.raises(InputError, match="keep 5 and 6 rows"):
        Features(5) + Features(6)
    with pytest.raises(NonFiniteError, match="picture 1 of this batch"):
        Features().add(torch.tensor([[0.0], [float("nan")]]))


def test_scores_add_up_without_any_rounding() -> None:
    values = drawn(30).flatten().tolist()
    prompts = [f"{k % 7}" for k in range(len(values))]
    whole = Scores().add(prompts, values)
    parts = Scores().add(prompts[100:], values[100:]) + Scores().add(prompts[:100], values[:100])
    assert whole.by_prompt == parts.by_prompt and whole.mean == parts.mean and len(parts) == 240
    assert Scores().add("ab", [1.0, 2.0]).add("a", [5.0]).by_prompt == {"a": 3.0, "b": 2.0}
    with pytest.raises(NonFiniteError, match="of 'a' is nan"):
        Scores().add("a", [float("nan")])
    with pytest.raises(InputError, match="no scores"):
        _ = Scores().mean


def test_agreement_with_torchmetrics() -> None:
    """On the same features; `torchmetrics` is no dependency of the tests."""
    fid = importlib.import_module("torchmetrics.image.fid")
    kid = importlib.import_module("torchmetrics.image.kid")
    real, made = drawn(60), drawn(50, seed=1, shift=0.3)

    class Given(torch.nn.Module):
        num_features = 8

        def forward(self, pictures):
            return pictures.flatten(1)

    theirs = fid.FrechetInceptionDistance(feature=Given(), input_img_size=(1, 1, 8)).set_dtype(torch.float64)
    others = kid.KernelInceptionDistance(feature=Given(), subset_size=50, subsets=1)
    for metric in (theirs, others):
        metric.update(real[:50, None, None], real=True)
        metric.update(made[:, None, None], real=False)
    assert frechet(Moments.of(real[:50]), Moments.of(made)) == pytest.approx(theirs.compute().item(), rel=1e-6)
    assert kernel_distance(made, real[:50]) == pytest.approx(others.compute()[0].item(), rel=1e-5)
