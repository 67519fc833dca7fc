"""Run the rows for both libraries in fresh processes and write the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from .probes import ROWS, UNET
from .train import CASES

OURS, PEER = "langevin", "diffusers"
ORDER = (OURS, PEER, PEER, OURS)
RESULTS = Path(__file__).parent / "results"
TOLERANCES = {"unet": 1e-5, "lora": 5e-3, "load": 0.0, **dict.fromkeys(CASES, 1e-5)}
"""Row -> relative L2 difference of the two outputs that is allowed: of one float32 UNet call, of the changes that
fusing makes to float16 weights, where the last bit may differ, of weights that were cast, and of the loss and the
gradient of one batch in float32."""
LARGE = {"load", "lora", "train-bf16", "train-large"}
"""Rows that take gigabytes and minutes, and run only when they are named."""

Figures = dict[str, dict[str, list[float]]]


def prepare(folder: Path) -> None:
    """Write the seeded weights that both libraries load."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")


def probe(row: str, library: str, folder: Path) -> dict[str, float]:
    """Run one row in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.probes", row, library, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if run.returncode:
        raise SystemExit(f"{row} failed for {library}:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def agreement(row: str, folder: Path) -> float:
    """Return the relative L2 difference of what the two libraries computed."""
    import torch

    ours, peer = (torch.load(folder / f"{row}-{library}.pt") for library in (OURS, PEER))
    return float((ours - peer).norm() / peer.norm())


def measure(rows: list[str], rounds: int, folder: Path) -> Figures:
    """Return metric -> library -> one figure per process, in the order A B B A, `rounds` times."""
    figures: Figures = {}
    for row in rows:
        for library in (OURS, PEER):  # warms the file cache; where there are outputs they are compared
            probe(row, library, folder)
        if row in TOLERANCES and (difference := agreement(row, folder)) > TOLERANCES[row]:
            raise SystemExit(f"The outputs of {row} differ by {difference:.1e} (relative L2); nothing was timed.")
        for library in ORDER * rounds:
            for metric, value in probe(row, library, folder).items():
                figures.setdefault(metric, {OURS: [], PEER: []})[library].append(value)
    return figures


def table(figures: Figures) -> str:
    """Return the medians with their ranges, and the peer's median over ours."""
    lines = [f"| | {OURS} | {PEER} | ratio |", "|---|---|---|---|"]
    for metric, both in figures.items():
        cells = [f"{statistics.median(v):.4g} ({min(v):.4g} to {max(v):.4g})" if v else "" for v in both.values()]
        ratio = f"{statistics.median(both[PEER]) / statistics.median(both[OURS]):.2f}x" if all(both.values()) else ""
        lines.append(f"| {metric} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def machine() -> str:
    """Return the hardware and the versions that the figures belong to."""
    import torch

    names = (OURS, PEER, "torch", "transformers")
    cpu = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    load = f"load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else "load unknown"
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{platform.machine()}, {cpu}, {load}; Python {platform.python_version()}, {packages}"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=sorted(ROWS), default=sorted(set(ROWS) - LARGE), help="rows to run"
    )
    parser.add_argument("--rounds", type=int, default=3, help="A B B A blocks per row (default 3)")
    parser.add_argument("--output", type=Path, default=RESULTS / "latest.md", help="Markdown file to write")
    return parser


def main() -> None:
    """Parse the options, measure, print the table and write it to benchmarks/results/."""
    options = parser().parse_args()
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        figures = measure(options.only, options.rounds, Path(folder))
    command = f"python -m benchmarks --only {' '.join(options.only)} --rounds {options.rounds}"
    notes = "Median (range) over fresh processes in the order A B B A; the ratio is the peer's figure over ours."
    text = f"# Side by side\n\n`{command}`\n\n{where}\n\n{notes}\n\n{table(figures)}\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(f"{text}\nWritten to {options.output}")


if __name__ == "__main__":
    main()
