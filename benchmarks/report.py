"""What was measured, as tables and as a plot. `python -m benchmarks.report` puts the results into the READMEs."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .inference import OPENVINO, OURS, PEER

Figures = dict[str, dict[str, list[float]]]
"""Metric -> library -> one figure per process; a metric ends with its unit."""
TITLES = {
    "L0": "L0: the defaults of each library",
    "L1": "L1: the best documented lossless settings of each library",
    "L2": "L2: lossy options",
}
SETTINGS = {
    "L0": "What `from_pretrained` gives, in the type of the row.",
    "L1": "langevin: `optimize()`, in bfloat16 on CPUs with AVX512-BF16 `optimize(kernels=True)`. diffusers: "
    "`fuse_qkv_projections()`, and channels_last where it pays: not in float32 on a CPU. openvino: static shapes, "
    "latency first. With `--compile` langevin and diffusers compile too.",
    "L2": "Each option on top of L1.",
}
NOTES = (
    "Median (range) over fresh processes in the order A B B A; a ratio is the other's figure over ours, with the range "
    "over pairs of processes. Times are of seeded weights. Decibels are the peak signal-to-noise ratio of pictures of "
    "the shipped model, a small one, drawn with what is lossy, against the same library's at L1."
)
SHOWN = Path(__file__).parent / "results" / "inference.md"
"""The results that the READMEs show."""
READMES = ("README.md", "README.ko.md")
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
IDLE = 0.5
"""The load average from which a machine counts as used by others."""
INK, RULE, COLOURS = "#1b2330", "#dfe3ea", {OURS: "#2b6cb0", PEER: "#d9601a", OPENVINO: "#2f855a"}


def told(values: Sequence[float]) -> str:
    """Return a median with its range."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})" if values else ""


def compared(metric: str, ours: Sequence[float], other: Sequence[float]) -> str:
    """Return the ratio of two medians with the range over pairs; decibels, and shares that are almost 0, have none."""
    if not ours or not other or metric.endswith("dB") or (metric.endswith("over result") and min(ours) < 1e-3):
        return ""
    pairs = [b / a for a, b in zip(ours, other, strict=True)]
    return f"{statistics.median(other) / statistics.median(ours):.2f}x ({min(pairs):.2f} to {max(pairs):.2f})"


def table(figures: Figures) -> str:
    """Return the medians with their ranges, and the others' medians over ours."""
    others = [library for library in (PEER, OPENVINO) if any(library in both for both in figures.values())]
    head = ["", OURS, *(cell for other in others for cell in (other, "ratio"))]
    lines = [f"| {' | '.join(head)} |".replace("|  |", "| |"), "|---" * len(head) + "|"]
    for metric, both in figures.items():
        cells = [metric, told(both[OURS])]
        for other in others:
            cells += [told(both.get(other, [])), compared(metric, both[OURS], both.get(other, []))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(levels: Mapping[str, Figures]) -> str:
    """Return a table for each level that has figures."""
    parts = [(level, table(figures)) for level, figures in levels.items() if figures]
    return "\n\n".join(f"### {TITLES[level]}\n\n{SETTINGS[level]}\n\n{text}" for level, text in parts)


def machine(load: float | None) -> str:
    """Return the hardware and the versions that the figures belong to."""
    import torch

    cores = f"{os.cpu_count()} cores, {processor()}{torch.backends.cpu.get_cpu_capability()}"
    devices = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    busy = "load unknown" if load is None else f"load average {load:.1f} at the start"
    names = (OURS, PEER, "torch", "transformers", OPENVINO)
    packages = ", ".join(f"{name} {found}" for name in names if (found := installed(name)))
    where = ", ".join(filter(None, (platform.machine(), cores, devices, busy)))
    return f"{where}; Python {platform.python_version()}, {packages}"


def processor() -> str:
    """Return the types beyond float32 that the processor multiplies, as far as the system tells."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").split())
    except OSError:
        return ""
    return "".join(f"{flag}, " for flag in ("amx_bf16", "avx512_bf16") if flag in flags)


def installed(name: str) -> str:
    """Return the version of a package, or nothing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def load_average() -> float | None:
    """Return the processes that wanted the processor over the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def warning(load: float | None) -> str:
    """Return what to say of a machine that is not idle, or nothing."""
    if load is None or load < IDLE:
        return ""
    return f"The machine was not idle: its load average was {load:.1f} at the start, so times may be off."


def write(file: Path, command: str, where: str, notes: Sequence[str], levels: Mapping[str, Figures]) -> str:
    """Write the Markdown file, and beside it the plot where there is something to plot; return the text."""
    said = "\n\n".join([f"`{command}`", where, NOTES, *filter(None, notes)])
    picture = file.with_suffix(".png")
    file.parent.mkdir(parents=True, exist_ok=True)
    shown = f"\n![Times and memory]({picture.name})\n" if plot(levels, picture) else ""
    text = f"# Side by side\n\n{said}\n{shown}\n{tables(levels)}\n"
    file.write_text(text, encoding="utf-8")
    return text


def block(text: str) -> str:
    """Return the tables of a results file, which the READMEs show."""
    return "".join(text.partition("### L")[1:]).strip()


def shown(text: str) -> str:
    """Return what a README shows of them."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def show(file: Path, root: Path) -> None:
    """Put the tables of a results file into the READMEs."""
    tables = block(file.read_text(encoding="utf-8"))
    for name in READMES:
        text = (root / name).read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        (root / name).write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


# The plot -------------------------------------------------------------------------------------------------------------

PANELS = {"Time": (" s", " ms", " ms per picture"), "Peak memory": (" GB",)}
MOST = 40
"""A picture with more bars than this cannot be read; the table has them."""


def bars(levels: Mapping[str, Figures], units: Sequence[str]) -> list[tuple[str, str, list[float], str]]:
    """Return label, library, ratios of pairs and both medians in words, for metrics in one of the units."""
    found = []
    for level, figures in levels.items():
        for metric, both in figures.items():
            name, _, unit = metric.rpartition(", ")
            for library, values in both.items():
                if library == OURS or not values or not both[OURS] or not metric.endswith(tuple(units)):
                    continue
                pairs = [b / a for a, b in zip(both[OURS], values, strict=True)]
                medians = [f"{statistics.median(v):.3g} {unit.removeprefix('peak ')}" for v in (values, both[OURS])]
                found.append((f"{level}  {name}", library, pairs, " against ".join(medians)))
    return found


def plot(levels: Mapping[str, Figures], file: Path) -> bool:
    """Draw how many times the other's figure is ours, with the range over pairs; tell whether there was anything."""
    panels = {title: bars(levels, units) for title, units in PANELS.items()}
    panels = {title: found for title, found in panels.items() if 0 < len(found) <= MOST}
    if not panels or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    rows = max(map(len, panels.values()))
    figure = Figure(figsize=(7.5 * len(panels), 1.6 + 0.34 * rows), layout="constrained")
    for axis, (title, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        draw(axis, title, found)
    figure.suptitle(f"Others' figure over that of {OURS}: right of the line {OURS} needs less", color=INK)
    figure.savefig(file, dpi=110)
    return True


def draw(axis: Any, title: str, found: Sequence[tuple[str, str, list[float], str]]) -> None:
    """Draw one panel."""
    libraries = dict.fromkeys(library for _, library, *_ in found)
    for k, (_, library, pairs, medians) in enumerate(found):
        middle, low, high = statistics.median(pairs), min(pairs), max(pairs)
        axis.barh(k, middle, color=COLOURS[library], height=0.62)
        axis.plot([low, high], [k, k], color=INK, linewidth=1.2)
        text = f"{middle:.2f}x   {medians}"
        axis.annotate(text, (max(high, 1), k), (6, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axis.axvline(1, color=INK, linewidth=1)
    axis.set_yticks(range(len(found)), [label for label, *_ in found], fontsize=9)
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_xlim(0, 1.7 * max(1, *(max(pairs) for _, _, pairs, _ in found)))
    axis.set_title(title, loc="left", fontsize=11, color=INK)
    axis.grid(axis="x", color=RULE)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    handles = [axis.barh([0], [0], color=COLOURS[library]) for library in libraries]
    axis.legend(handles, libraries, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)


if __name__ == "__main__":
    show(SHOWN, Path(__file__).parent.parent)
