"""Tables, the plot, and the READMEs, which show the tables of the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.inference import OPENVINO, OURS, PEER

ROOT = Path(report.__file__).parents[1]


def test_a_row_has_medians_ranges_and_the_ratio_of_pairs() -> None:
    figures = {"time, s": {OURS: [1.0, 2.0, 3.0], PEER: [3.0, 4.0, 9.0]}}
    assert report.table(figures).splitlines() == [
        "| | langevin | diffusers | ratio |",
        "|---|---|---|---|",
        "| time, s | 2 (1 to 3) | 4 (3 to 9) | 2.00x (2.00 to 3.00) |",
    ]


def test_a_library_without_a_figure_has_empty_cells_and_decibels_no_ratio() -> None:
    figures = {
        "time, s": {OURS: [2.0], PEER: [4.0], OPENVINO: [1.0]},
        "time, us": {OURS: [2.0], PEER: []},
        "one, dB": {OURS: [30.0], PEER: [40.0]},
    }
    assert report.table(figures).splitlines() == [
        "| | langevin | diffusers | ratio | openvino | ratio |",
        "|---|---|---|---|---|---|",
        "| time, s | 2 (2 to 2) | 4 (4 to 4) | 2.00x (2.00 to 2.00) | 1 (1 to 1) | 0.50x (0.50 to 0.50) |",
        "| time, us | 2 (2 to 2) |  |  |  |  |",
        "| one, dB | 30 (30 to 30) | 40 (40 to 40) |  |  |  |",
    ]


def test_a_machine_that_is_not_idle_is_told() -> None:
    assert report.warning(0.1) == report.warning(None) == ""
    assert "load average was 3.2 at the start" in report.warning(3.2)
    assert "load average 3.2" in report.machine(3.2) and "load unknown" in report.machine(None)


def test_bars_are_times_and_memory_apart() -> None:
    levels = {"L1": {"step float32, s": {OURS: [1.0], PEER: [2.0], OPENVINO: []}}}
    levels["L1"] |= {"step float32, peak GB": {OURS: [4.0], PEER: [2.0]}, "one, dB": {OURS: [1.0], PEER: [2.0]}}
    time, memory = report.PANELS.values()
    assert report.bars(levels, time) == [("L1  step float32", PEER, [2.0], "2 s against 1 s")]
    assert report.bars(levels, memory) == [("L1  step float32", PEER, [0.5], "2 GB against 4 GB")]


def test_the_plot_holds_what_can_be_read(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    one = {OURS: [1.0, 1.1], PEER: [2.0, 1.9]}
    assert report.plot({"L0": {f"row {k}, s": one for k in range(5)}}, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert not report.plot({"L0": {f"row {k}, s": one for k in range(report.MOST + 1)}}, tmp_path / "b.png")
    assert not report.plot({"L0": {"row, modules": one}}, tmp_path / "b.png")


def test_the_readmes_show_the_tables_of_the_results() -> None:
    tables = report.block(report.SHOWN.read_text(encoding="utf-8")) if report.SHOWN.exists() else ""
    for name in report.READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.count(report.BEGIN) == text.count(report.END) == 1
        assert report.shown(text) == tables, "python -m benchmarks.report puts them there"


def test_results_are_put_into_readmes(tmp_path) -> None:
    figures = {"L0": {"time, s": {OURS: [1.0], PEER: [2.0]}}, "L1": {}}
    report.write(tmp_path / "results.md", "python -m benchmarks", "a machine", ["a note"], figures)
    for name in report.READMES:
        (tmp_path / name).write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter", encoding="utf-8")
    report.show(tmp_path / "results.md", tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter") and "old" not in text
    assert text.count("| time, s |") == 1 and "L1" not in text
