"""Random numbers and the order of examples depend on the position in the run and on nothing else."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin.core.errors import InputError
from langevin.training.streams import BucketOrder, Draw, Order, Streams

STREAMS = Streams(7)


def of_step(order: Order, step: int) -> list[int]:
    """Return the positions that all processes see in a step, in the order of the run."""
    batches = [(number, process) for process in range(order.processes) for number in range(order.accumulated)]
    return sorted(p for batch in batches for p in order.positions(step, *batch))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30))
def test_a_step_sees_the_same_examples_however_it_is_split(count, batch, accumulated, processes, step) -> None:
    split = Order(STREAMS, count, batch, accumulated, processes)
    whole = Order(STREAMS, count, batch * accumulated * processes)
    assert of_step(split, step) == of_step(whole, step)
    assert [split.example(p) for p in of_step(split, step)] == [whole.example(p) for p in of_step(whole, step)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_sees_every_example_once(count: int, epoch: int) -> None:
    order = Order(STREAMS, count, 1)
    seen = [order.example(p) for p in range(epoch * count, (epoch + 1) * count)]
    assert sorted(seen) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    first = [Order(STREAMS, 30, 1).example(p) for p in range(30)]
    second = [Order(STREAMS, 30, 1).example(p) for p in range(30, 60)]
    other = [Order(Streams(8), 30, 1).example(p) for p in range(30)]
    assert first != second and first != other


def test_batches_begin_at_a_step_as_they_would_have_come() -> None:
    order = Order(STREAMS, 10, 2, accumulated=3, processes=2)
    all_of_them = list(order.batches(1, 0, 8))
    assert list(order.batches(1, 5, 8)) == all_of_them[15:]
    assert list(islice(order.batches(1, 5), 9)) == all_of_them[15:]


def test_steps_for_epochs() -> None:
    assert Order(STREAMS, 10, 4).steps(3) == 8
    assert Order(STREAMS, 10, 4).epoch(3) == 1


def test_draws_belong_to_positions() -> None:
    together, alone = Draw(STREAMS, [3, 4, 5]), Draw(STREAMS, [4])
    assert torch.equal(together.normal("noise", (2, 2))[1], alone.normal("noise", (2, 2))[0])
    assert torch.equal(together.uniform("level")[1], alone.uniform("level")[0])
    assert not torch.equal(alone.normal("noise", (2, 2)), alone.normal("offset", (2, 2)))


def test_draws_are_normal_and_even() -> None:
    draw = Draw(STREAMS, range(4000))
    normal, even = draw.normal("noise", (4,)), draw.uniform("level")
    assert abs(float(normal.mean())) < 0.03 and abs(float(normal.std()) - 1) < 0.03
    counts = torch.histc(even, 10, 0, 1)
    assert counts.min() > 320 and counts.max() < 480


@pytest.mark.parametrize("wrong", [{"count": 0}, {"batch": 0}, {"accumulated": 0}, {"processes": 0}])
def test_nothing_to_see_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Order(**{"streams": STREAMS, "count": 3, "batch": 1, **wrong})


# ---- buckets --------------------------------------------------------------------------------------------------------


def buckets_of(sizes: list[int], seed: int) -> list[list[int]]:
    """Return buckets of some sizes, the examples spread over them."""
    mixed = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    return [sorted(mixed[sum(sizes[:k]) : sum(sizes[: k + 1])]) for k in range(len(sizes))]


def bucketed(sizes: list[int], batch: int, accumulated: int = 1, processes: int = 1) -> BucketOrder:
    return BucketOrder(STREAMS, sum(sizes), batch, accumulated, processes, buckets_of(sizes, 0))


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 40))
def test_a_step_sees_one_bucket_and_the_same_examples_however_it_is_split(
    sizes, batch, accumulated, processes, step
) -> None:
    split = bucketed(sizes, batch, accumulated, processes)
    whole = bucketed(sizes, batch * accumulated * processes)
    seen = [split.example(p) for p in of_step(split, step)]
    assert seen == [whole.example(p) for p in of_step(whole, step)]
    assert any(set(seen) <= set(members) for members in split.buckets)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(4, 30), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 6))
def test_no_example_is_seen_twice_before_the_others_of_its_bucket(sizes, batch, rounds) -> None:
    order = bucketed(sizes, batch)
    steps = sum(rounds * size // batch for size in sizes)
    seen = [order.example(p) for p in range(steps * batch)]
    for members in order.buckets:
        counts = [seen.count(k) for k in members]
        assert sum(counts) == rounds * len(members) // batch * batch
        assert max(counts) == -(-sum(counts) // len(members)) and max(counts) - min(counts) <= 1


def test_buckets_are_mixed_and_begin_anywhere_as_they_would_have_come() -> None:
    order = bucketed([12, 30, 9], 3)
    home = {k: number for number, members in enumerate(order.buckets) for k in members}
    runs = [home[batch[0][0]] for batch in order.batches(0, 0, 34)]
    assert runs[:17] != sorted(runs[:17]) and runs[:17] != runs[17:]
    assert sorted(runs[:17]) == sorted(runs[17:]) == [0] * 4 + [1] * 10 + [2] * 3
    assert list(order.batches(0, 20, 34)) == list(order.batches(0, 0, 34))[20:]


@pytest.mark.parametrize("wrong", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2], []], []])
def test_buckets_hold_every_example_once(wrong) -> None:
    with pytest.raises(InputError, match="each of the 3 examples once"):
        BucketOrder(STREAMS, 3, 1, buckets=wrong)
