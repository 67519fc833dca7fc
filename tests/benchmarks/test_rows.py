"""Which rows run, that what differs is not timed, and the rows of networks and pictures from end to end, tiny."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks import inference
from benchmarks.inference import CASES, OPENVINO, OURS, PEER, Setting
from benchmarks.probes import ROWS
from benchmarks.seeded import TINY, network_folder


def planned(*arguments: str) -> tuple[list[bench.Plan], list[str]]:
    notes: list[str] = []
    return list(bench.plans(bench.parser().parse_args(arguments), notes)), notes


def test_rows_run_at_their_levels_and_in_their_types() -> None:
    found, notes = planned("--only", "import", "unet", "--level", "L1", "L0", "--dtype", "float32", "bfloat16")
    seen = [(plan.row, plan.setting.level, plan.setting.dtype) for plan in found]
    types = [("unet", level, dtype) for dtype in bench.DTYPES for level in ("L0", "L1")]
    assert seen == [("import", "L0", "float32"), *types] and notes == []
    assert all(plan.libraries == (OURS, PEER) for plan in found)


def test_what_is_lossy_is_measured_where_a_library_has_it() -> None:
    found, _ = planned("--only", "image-sd15", "--level", "L1", "L2")
    assert [(plan.setting.option, plan.libraries) for plan in found] == [
        ("", (OURS, PEER)), ("token merging 0.5", (OURS, PEER)), ("feature cache 3", (OURS,)),
    ]  # fmt: skip


def test_what_cannot_run_here_is_told(monkeypatch) -> None:
    monkeypatch.setattr(bench, "on_gpu", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, notes = planned("--only", "offload", "import", "step-sd15", "--level", "L1")
    assert [plan.row for plan in found] == ["step-sd15"] and found[0].libraries == (OURS, PEER)
    assert [note.split(":")[0] for note in notes] == [
        "`offload` needs a GPU, and there is none",
        "`import` has no level L1",
        "OpenVINO is not installed (`pip install openvino`)",
    ]


def test_the_default_rows_need_neither_much_memory_nor_a_gpu() -> None:
    found, notes = planned()
    assert {plan.row for plan in found} == {
        "import", "scheduler", "scheduler-host", "unet", "text",
        "train-full", "train-lora", "train-full-cached", "train-lora-cached",
    }  # fmt: skip
    assert notes == []


@pytest.mark.parametrize("arguments", [("--level", "L3"), ("--steps", "0"), ("--rounds", "0"), ("--only", "nothing")])
def test_options_that_cannot_be_meant_are_refused(arguments, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--only", "image-sd15", *arguments])
    assert "error" in capsys.readouterr().err


def test_the_order_falls_alike_on_all(monkeypatch, tmp_path) -> None:
    asked = []

    def probe(row: str, library: str, folder: Path, setting: Setting) -> dict[str, float]:
        asked.append(library)
        return {"time, s": 1.0 if library == OURS else 3.0}

    monkeypatch.setattr(bench, "probe", probe)
    figures = bench.measure(bench.Plan("import", Setting(), (OURS, PEER)), 2, tmp_path)
    assert asked == [OURS, PEER, PEER, OURS] * 2
    assert figures == {"time, s": {OURS: [1.0] * 4, PEER: [3.0] * 4}}
    asked.clear()
    bench.measure(bench.Plan("step-sd15", Setting(), (OURS, PEER, OPENVINO)), 1, tmp_path)
    assert asked == [OURS, PEER, OPENVINO, OPENVINO, PEER, OURS]


def test_what_differs_is_not_timed_and_ends_the_run(monkeypatch, tmp_path) -> None:
    timed = []

    def probe(row: str, library: str, folder: Path, setting: Setting) -> dict[str, float]:
        if setting.check:
            wrong = 2e-5 if (row, library) == ("step-sdxl", OURS) else 0.0
            torch.save(torch.full((4,), 1.0 + wrong), folder / f"{row}-{library}.pt")
            return {}
        timed.append(row)
        return {f"{row}, s": 1.0}

    monkeypatch.setattr(bench, "probe", probe)
    file = tmp_path / "a.md"
    with pytest.raises(SystemExit, match=r"differ by 2\.0e-05 .* at step-sdxl L0 float32, and 1e-05 is allowed"):
        bench.main(["--only", "unet", "step-sdxl", "text", "--rounds", "1", "--level", "L0", "--output", str(file)])
    assert timed == ["unet"] * 4 and "| unet, s |" in file.read_text() and "step-sdxl, s" not in file.read_text()


@pytest.fixture
def here(monkeypatch) -> list[tuple[str, str, Setting]]:
    """Run rows in this process, and take the time of one call; returns what was run."""
    run = []

    def probe(row: str, library: str, folder: Path, setting: Setting) -> dict[str, float]:
        run.append((row, library, setting))
        return ROWS[row].run(library, folder, setting)

    def once(call, repeats: int, **rest: float) -> float:
        return inference.seconds(call)

    monkeypatch.setattr(bench, "probe", probe)
    monkeypatch.setattr(inference, "clocked", once)
    return run


def test_networks_from_end_to_end(here, tmp_path) -> None:
    file = tmp_path / "a.md"
    bench.main(["--only", *CASES, "--level", "L1", "--size", TINY, "--rounds", "1", "--output", str(file)])
    text = file.read_text(encoding="utf-8")
    assert "### L0" not in text and [row for row in CASES if f"| {row} float32, s |" not in text] == []
    assert all(f"{row} L1 float32: {OURS} " in text for row in CASES)
    assert file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG" and "![Times and memory](a.png)" in text


def test_pictures_from_end_to_end(here, tmp_path) -> None:
    file = tmp_path / "a.md"
    few = ["--size", TINY, "--rounds", "1", "--steps", "4", "--output", str(file)]
    bench.main(["--only", "image-sd15", "--level", "L1", "L2", *few])
    lossy = file.read_text(encoding="utf-8").partition("### L2")[2]
    found = {line.split(" | ")[0]: line.split(" | ")[1:3] for line in lossy.splitlines() if "dB" in line}
    merged, cached = (found[f"| image-sd15 float32 {option}, dB"] for option in inference.LOSSY)
    assert all(10 < float(cell.split()[0]) < 100 for cell in (*merged, cached[0])) and cached[1].strip() == ""
    assert {library for _, library, setting in here if setting.option == "feature cache 3"} == {OURS}


def test_rows_compute_in_bfloat16(here, tmp_path) -> None:
    file = tmp_path / "a.md"
    few = ["--size", TINY, "--rounds", "1", "--level", "L1", "--output", str(file), "--dtype", "bfloat16"]
    bench.main(["--only", "step-sd15", "vae-decode", *few])
    assert "| step-sd15 bfloat16, s |" in file.read_text() and "| vae-decode bfloat16, s |" in file.read_text()


def test_openvino_computes_the_same(tmp_path) -> None:
    pytest.importorskip("openvino")
    setting = Setting("L1", size=TINY, check=True)
    for library in (PEER, OPENVINO):
        assert inference.network("step-sd15", library, tmp_path, setting) == {}
    assert bench.difference("step-sd15", OPENVINO, tmp_path) < bench.RIVAL


def test_a_network_runs_in_a_process_of_its_own(tmp_path) -> None:
    found = bench.probe("step-sd15", OURS, tmp_path, Setting(size=TINY))
    assert set(found) == {"step-sd15 float32, s", "step-sd15 float32, peak GB"}
    assert all(value > 0 for value in found.values())
    with pytest.raises(SystemExit, match=r"(?s)step-sd15 failed for nothing, .*No module named 'nothing'"):
        bench.probe("step-sd15", "nothing", tmp_path, Setting(size=TINY))


def test_seeded_weights_are_the_same_in_every_run_and_written_once(tmp_path) -> None:
    first, second = (network_folder(tmp_path / name, "sdxl", "unet", size=TINY) for name in "ab")
    file = next(first.glob("*.safetensors"))
    assert file.read_bytes() == (second / file.name).read_bytes()
    before = file.stat().st_mtime_ns
    assert network_folder(tmp_path / "a", "sdxl", "unet", size=TINY) == first and file.stat().st_mtime_ns == before
    weights = bench.importlib.import_module("langevin").UNet2DConditionModel.from_pretrained(first).state_dict()
    spread = weights["mid_block.attentions.0.proj_in.weight"]
    assert float(spread.std() * spread.shape[1] ** 0.5) == pytest.approx(3**-0.5, rel=0.1)
    assert weights["conv_norm_out.weight"].unique().tolist() == [1.0]
