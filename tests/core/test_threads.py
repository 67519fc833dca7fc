"""Threads that work alone: results in order, errors, and torch's number of threads as it was."""

from __future__ import annotations

import threading

import pytest
import torch

from langevin.core.threads import each


@pytest.fixture(params=[1, 3])
def total(request):
    """A number of threads that torch may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_use_one_core(total: int) -> None:
    found = each(lambda k: (k * k, torch.get_num_threads()), range(20))
    assert [value for value, _ in found] == [k * k for k in range(20)]
    assert {cores for _, cores in found} == {1}
    assert torch.get_num_threads() == total


def test_threads_that_others_make_are_not_limited(total: int) -> None:
    each(lambda k: k, range(5))
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [total]


def test_what_is_raised_is_raised_here(total: int) -> None:
    def work(k: int) -> int:
        if k in (3, 7):
            raise ValueError(str(k))
        return k

    with pytest.raises(ValueError, match="3"):
        each(work, range(9))
    assert torch.get_num_threads() == total and each(work, []) == [] and each(work, [1]) == [1]
