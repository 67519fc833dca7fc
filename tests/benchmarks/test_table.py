"""The benchmark's own arithmetic: times, memory, and the host time of schedulers."""

from __future__ import annotations

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks.host import Arithmetic, host_times, names
from benchmarks.inference import OURS
from benchmarks.measures import clocked, peak


def test_clocked_is_a_median_and_leaves_out_the_first_call() -> None:
    calls = []
    assert clocked(lambda: calls.append(0), 5) >= 0
    assert len(calls) == 6
    assert clocked(lambda: calls.append(0), 5, budget=0.0, least=2) >= 0
    assert len(calls) == 9


def test_a_probe_prints_its_figures(tmp_path) -> None:
    found = bench.probe("import", OURS, tmp_path, bench.Setting())
    assert set(found) == {"import, s", "import, modules", "import, peak GB"}
    assert 0.1 < found["import, peak GB"] < 2 and peak() > 0


def test_arithmetic_is_what_computes() -> None:
    x = torch.ones(2, 3)
    with Arithmetic() as arithmetic:
        y = torch.add(x.to(torch.float64).float().reshape(3, 2), 1.0) * 0.5
        float(y[0, 0])
    assert [call[0].__name__ for call in arithmetic.calls] == ["add", "mul"]
    arithmetic.again()


ADDITIONS = 40
"""So many additions of small tensors may take as long as a step takes beyond its arithmetic."""


@pytest.mark.parametrize("name", names())
def test_a_step_costs_little_beyond_its_arithmetic(name: str) -> None:
    """The limit of 25 us is an idle machine's. Tests share theirs, which may be slow, so additions measure it here."""
    seen = []
    x = torch.ones(1, 4, 8, 8)
    while not seen or (seen[-1] >= ADDITIONS and len(seen) < 10):
        with torch.no_grad():
            unit = 1e6 * min(clocked(lambda: [x + 1.0 for _ in range(100)], 5) for _ in range(5)) / 100
            whole, beyond = host_times("langevin", name, rounds=20, middle=min).values()
        assert beyond < whole
        seen.append(beyond / unit)
    assert seen[-1] < ADDITIONS, seen
