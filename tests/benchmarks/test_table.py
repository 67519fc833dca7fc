"""The benchmark's own arithmetic: order, medians, ratios, and that both libraries are asked the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks.host import Arithmetic, host_times, names
from benchmarks.probes import ROWS, clocked
from benchmarks.train import CASES


def test_order_and_figures(monkeypatch, tmp_path) -> None:
    asked = []

    def probe(row: str, library: str, folder) -> dict[str, float]:
        asked.append(library)
        return {"time, s": 1.0 if library == bench.OURS else 3.0}

    monkeypatch.setattr(bench, "probe", probe)
    figures = bench.measure(["import"], 2, tmp_path)
    ours, peer = bench.OURS, bench.PEER
    assert asked == [ours, peer, *[ours, peer, peer, ours] * 2]
    assert figures == {"time, s": {ours: [1.0] * 4, peer: [3.0] * 4}}
    assert bench.table(figures).splitlines()[-1] == "| time, s | 1 (1 to 1) | 3 (3 to 3) | 3.00x |"


def test_clocked_is_a_median_and_leaves_out_the_first_call() -> None:
    calls = []
    assert clocked(lambda: calls.append(0), 5) >= 0
    assert len(calls) == 6


def test_a_probe_prints_its_figures(tmp_path) -> None:
    command = [sys.executable, "-m", "benchmarks.probes", "import", "langevin", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(json.loads(run.stdout.splitlines()[-1])) == {"import, s", "import, modules"}
    assert set(ROWS) == {"import", "load", "lora", "scheduler", "scheduler-host", "unet", *CASES}


def test_a_library_without_a_figure_has_an_empty_cell() -> None:
    figures = {"time, us": {bench.OURS: [2.0], bench.PEER: []}}
    assert bench.table(figures).splitlines()[-1] == "| time, us | 2 (2 to 2) |  |  |"


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
