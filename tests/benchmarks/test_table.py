"""The benchmark's own arithmetic: order, medians, ratios, and that both libraries are asked the same."""

from __future__ import annotations

import json
import subprocess
import sys

import benchmarks.__main__ as bench
from benchmarks.probes import ROWS, clocked


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
    assert set(ROWS) == {"import", "scheduler", "unet"}
