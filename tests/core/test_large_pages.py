"""Memory in large pages: tensors as torch makes them, given back when they go, also where there are no large pages."""

from __future__ import annotations

import gc
import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from langevin.core import garbage
from langevin.core.large_pages import ALIGNED, PAGE, REGION, Wanted, empty

MIXED = [
    Wanted((3, 5), torch.float32),
    Wanted((), torch.bfloat16),
    Wanted((0, 4), torch.float16),
    Wanted((PAGE,), torch.bfloat16),
    Wanted((7,), torch.int64),
    Wanted((REGION + 1,), torch.uint8),
    Wanted((2, 2), torch.bool),
]


class Refusing(mmap.mmap):
    """Memory of a system without large pages."""

    def madvise(self, *args: Any) -> None:
        raise OSError(22, "Invalid argument")


@pytest.fixture(params=["quick", "slow", "unknown", "refused"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A system that has large pages, one where they are slow, one whose Python does not know them, one that refuses."""
    monkeypatch.setattr("langevin.core.large_pages.SLOW", -1.0 if request.param == "slow" else 10.0)
    if request.param == "unknown":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    elif request.param == "refused":
        monkeypatch.setattr(mmap, "mmap", Refusing)
    yield request.param


def test_tensors_are_what_is_wanted_and_lie_apart(system: str) -> None:
    made = empty(MIXED)
    for number, (tensor, wanted) in enumerate(zip(made, MIXED, strict=True)):
        assert tensor.shape == wanted.shape and tensor.dtype == wanted.dtype and tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == wanted.numel * wanted.dtype.itemsize
        assert tensor.data_ptr() % ALIGNED == 0
        tensor.fill_(number % 2 if tensor.dtype == torch.bool else number)
    for number, tensor in enumerate(made):
        assert (tensor == (number % 2 if tensor.dtype == torch.bool else number)).all()
    assert made[3].untyped_storage().resizable() == (system != "quick" or not hasattr(mmap, "MADV_HUGEPAGE"))


def test_little_comes_from_torch_itself() -> None:
    (small,) = empty([Wanted((100,), torch.float32)])
    assert small.untyped_storage().resizable() and empty([]) == []


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages")
def test_slow_pages_are_asked_for_once_by_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counted(mmap.mmap):
        def madvise(self, *args: Any) -> None:
            asked.append(len(self))

    monkeypatch.setattr(mmap, "mmap", Counted)
    several = torch.get_num_threads()
    for slow, least, most in ((-1.0, 1, several), (10.0, several + 1, several + 1)):
        monkeypatch.setattr("langevin.core.large_pages.SLOW", slow)
        asked.clear()
        empty([Wanted((REGION,), torch.uint8)] * (several + 1))
        assert least <= len(asked) <= most


def test_a_saved_tensor_takes_no_neighbours_along() -> None:
    _, small = empty([Wanted((PAGE,), torch.bfloat16), Wanted((8,), torch.float32)])
    buffer = io.BytesIO()
    torch.save(small.zero_(), buffer)
    assert len(buffer.getvalue()) < 4096


def resident() -> int:
    """Return the bytes of this process's memory that no file holds."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages")
def test_tensors_that_are_replaced_in_order_free_memory_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langevin.core.large_pages.SLOW", 10.0)
    before = resident()
    made = [tensor.fill_(1) for tensor in empty([Wanted((REGION // 8,), torch.uint8)] * 32)]
    full = resident() - before
    assert 0.95 * 4 * REGION < full < 1.1 * 4 * REGION
    del made[:16]
    assert abs(resident() - before - full / 2) < 0.1 * full


def test_garbage_is_not_looked_for_meanwhile() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="x"), garbage.put_off():
        assert not gc.isenabled()
        raise ValueError("x")
    assert gc.isenabled()
    gc.disable()
    try:
        with garbage.put_off():
            pass
        assert not gc.isenabled(), "who turned it off wants it off"
    finally:
        gc.enable()
