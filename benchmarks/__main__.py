"""Run the rows for both libraries in fresh processes and write the tables and the plot."""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from . import report
from .inference import LEVELS, LOSSY, OPENVINO, PEER, Setting
from .measures import on_gpu
from .probes import ROWS
from .seeded import FULL, TINY

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DTYPES = ("float32", "bfloat16")
RIVAL = 1e-4
"""Relative L2 difference from the peer that is allowed of OpenVINO in float32."""


class Plan(NamedTuple):
    """One row at one level, in one type, with at most one lossy option, and who takes part."""

    row: str
    setting: Setting
    libraries: tuple[str, ...]


def plans(options: argparse.Namespace, notes: list[str]) -> Iterator[Plan]:
    """Yield what the options ask for; what is left out is told in `notes`."""
    for name in options.only:
        row = ROWS[name]
        if row.gpu and not on_gpu():
            notes.append(f"`{name}` needs a GPU, and there is none: not measured.")
            continue
        levels = [level for level in LEVELS if level in options.level and level in row.levels]
        if not levels:
            notes.append(f"`{name}` has no level {' or '.join(options.level)}: not measured.")
        for dtype in options.dtype if len(row.tolerance) > 1 else DTYPES[:1]:
            for level in levels:
                base = Setting(level, dtype, options.size, options.steps, options.compile)
                if level == "L2":
                    yield from (Plan(name, replace(base, option=key), tuple(LOSSY[key])) for key in LOSSY)
                else:
                    yield Plan(name, base, tuple(able(row.libraries(level), dtype, notes)))


def able(libraries: Sequence[str], dtype: str, notes: list[str]) -> Iterator[str]:
    """Yield the libraries that are here and compute in a type."""
    for library in libraries:
        if library == OPENVINO and importlib.util.find_spec(OPENVINO) is None:
            notes.append("OpenVINO is not installed (`pip install openvino`): left out.")
        elif library == OPENVINO and not importlib.import_module(".rival", __package__).computes_in(dtype):
            notes.append(f"OpenVINO does not compute in {dtype} on this processor: left out.")
        else:
            yield library


def probe(row: str, library: str, folder: Path, setting: Setting) -> dict[str, float]:
    """Run one row in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.probes", row, library, str(folder), json.dumps(asdict(setting))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        raise SystemExit(f"{row} failed for {library}, {setting}:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def difference(row: str, library: str, folder: Path) -> float:
    """Return the relative L2 difference of what a library computed from what the peer did."""
    import torch

    found, peer = (torch.load(folder / f"{row}-{name}.pt") for name in (library, PEER))
    return float((found - peer).norm() / peer.norm())


def agree(plan: Plan, folder: Path) -> str:
    """Compute what all are compared by, and say how far they differ; raise SystemExit where they do by too much."""
    check, told = replace(plan.setting, check=True), []
    for library in plan.libraries:
        probe(plan.row, library, folder, check)
    for library in plan.libraries:
        if library == PEER or not ROWS[plan.row].tolerance:
            continue
        found, allowed = difference(plan.row, library, folder), ROWS[plan.row].tolerance[plan.setting.dtype]
        allowed = max(allowed, RIVAL) if library == OPENVINO else allowed
        name = f"{plan.row} {plan.setting.level} {plan.setting.dtype}"
        if not found <= allowed:
            raise SystemExit(
                f"{library} and {PEER} differ by {found:.1e} (relative L2) at {name}, and {allowed:.0e} is allowed; "
                "it was not timed. The tables hold the rows before it."
            )
        told.append(f"{library} {found:.1e}")
    return f"{plan.row} {plan.setting.level} {plan.setting.dtype}: {', '.join(told)}" if told else ""


def measure(plan: Plan, rounds: int, folder: Path) -> report.Figures:
    """Return metric -> library -> one figure per process, in the order A B B A, `rounds` times."""
    figures: report.Figures = {}
    for library in (*plan.libraries, *reversed(plan.libraries)) * rounds:
        for metric, value in probe(plan.row, library, folder, plan.setting).items():
            empty = {name: [] for name in plan.libraries}
            figures.setdefault(metric, empty)[library].append(value)
    return figures


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    usual = [name for name, row in sorted(ROWS.items()) if not row.large and not row.gpu]
    parser.add_argument("--only", nargs="+", choices=sorted(ROWS), default=usual, help="rows to run, in this order")
    parser.add_argument("--level", nargs="+", choices=LEVELS, default=["L0", "L1"], help="levels (default L0 L1)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="types (default float32)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a picture (default 20)")
    parser.add_argument("--size", choices=(FULL, TINY), default=FULL, help="published shapes, or a quick self-check")
    parser.add_argument("--compile", action="store_true", help="with torch.compile in both libraries, above L0")
    parser.add_argument("--rounds", type=int, default=3, help="A B B A blocks per row (default 3)")
    parser.add_argument("--output", type=Path, default=RESULTS / "latest.md", help="Markdown file; a PNG is put beside")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options, measure, and write what there is after every row."""
    reader = parser()
    options = reader.parse_args(arguments)
    if options.steps < 1 or options.rounds < 1:
        reader.error("--steps and --rounds are 1 or more.")
    load = report.load_average()
    said, where = [report.warning(load)], report.machine(load)
    if importlib.util.find_spec("matplotlib") is None:
        said.append("There is no plot: matplotlib is not installed (`pip install matplotlib`).")
    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    levels: dict[str, report.Figures] = {level: {} for level in LEVELS}
    asked = list(plans(options, said))
    said = list(dict.fromkeys(said))
    print("\n".join(filter(None, said)), file=sys.stderr)
    agreements: list[str] = []
    if "import" in options.only:
        # The peer was compiled to bytecode when it was installed; an editable install is not.
        compileall.compile_dir(ROOT / "src", quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        for plan in asked:
            print(f"{plan.row} {plan.setting.level} {plan.setting.dtype} {plan.setting.option}", file=sys.stderr)
            if plan.setting.level != "L2":
                agreements.append(agree(plan, Path(folder)))
            levels[plan.setting.level] |= measure(plan, options.rounds, Path(folder))
            checked = "Relative L2 difference from the peer before timing: " + "; ".join(filter(None, agreements)) + "."
            text = report.write(options.output, command, where, [*said, checked], levels)
    if not asked:
        raise SystemExit("Nothing was measured.")
    print(f"{text}\nWritten to {options.output}")


if __name__ == "__main__":
    main()
