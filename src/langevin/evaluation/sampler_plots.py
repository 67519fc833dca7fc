"""Pictures of samplers: the noise levels that they visit, and their errors by network calls. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.files import atomic_file
from ..core.imports import require
from .analytic import Gaussian
from .convergence import errors, moments, weak_error
from .driving import Bench
from .lab import DISTILLED

INK, PAPER, RULE = "#1b2330", "#ffffff", "#dfe3ea"
COLOURS = ("#2b6cb0", "#d9601a", "#2f855a", "#9b3fa0", "#b7791f", "#c53030", "#319795", "#4a5568")
"""One colour per sampler; they differ in lightness too."""
MARKS = "osD^vPX*"
LADDER = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": RULE,
    "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
    "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "figure.facecolor": PAPER,
    "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 4.5, "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}  # fmt: skip


def plot(benches: Sequence[Bench], path: Path, *, steps: int = 20, ladder: Sequence[int] = LADDER) -> Path:
    """Draw sigma / alpha and lambda by step, and errors on Gaussian data by network calls; return the path.

    Args:
        benches: the samplers, at most eight.
        steps: the number of steps of the two upper panels.
        ladder: the numbers of steps of the error curves.

    Raises:
        InputError: for no sampler or more than eight. MissingDependencyError: without matplotlib.
    """
    if not 1 <= len(benches) <= len(COLOURS):
        raise InputError(f"A picture holds 1 to {len(COLOURS)} samplers; {len(benches)} were given.")
    matplotlib = require("matplotlib", why="Drawing samplers")
    figures = require("matplotlib.figure", why="Drawing samplers")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(11, 8), layout="constrained")
        axes = figure.subplot_mosaic([["levels", "lambdas"], ["errors", "errors"]], height_ratios=(1, 1.25))
        for k, (bench, name) in enumerate(zip(benches, labels(benches), strict=True)):
            look = {"color": COLOURS[k], "marker": MARKS[k], "label": name, "markeredgewidth": 0}
            draw_levels(axes, bench, steps, look)
            draw_errors(axes["errors"], bench, ladder, look)
        dress(axes, steps)
        figure.legend(handles=axes["levels"].get_lines(), loc="outside lower center", ncols=min(len(benches), 4))
        with atomic_file(path) as partial:
            figure.savefig(partial, format="png", dpi=130)
    return path


def labels(benches: Sequence[Bench]) -> list[str]:
    """Return a name for each sampler; equal classes are numbered."""
    names = [bench.name.removesuffix("Scheduler") for bench in benches]
    return [f"{n} ({names[:k].count(n) + 1})" if names.count(n) > 1 else n for k, n in enumerate(names)]


def draw_levels(axes: dict[str, Any], bench: Bench, steps: int, look: dict[str, Any]) -> None:
    """Draw where the network is asked; infinite ends have no place on the axes and are left out."""
    calls = bench.schedule(steps).calls
    points = [(k, c.level) for k, c in enumerate(calls) if c.level.alpha > 0 and c.level.sigma > 0]
    where, levels = zip(*points, strict=True)
    axes["levels"].semilogy(where, [level.ratio for level in levels], **look)
    axes["lambdas"].plot(where, [level.lam for level in levels], **look)


def draw_errors(axis: Any, bench: Bench, ladder: Sequence[int], look: dict[str, Any]) -> None:
    """Draw the error at the end by network calls; of mean and deviation, dashed, where a table draws noise."""
    data, points, stochastic = Gaussian(), [], False
    distilled = bench.name in DISTILLED
    for steps in (n for n in ladder if bench.able(n)):
        plan = bench.plan(steps) if bench.has_table else None
        stochastic = plan is not None and plan.stochastic
        if plan is not None and stochastic:
            gap, calls = weak_error(moments(plan, data, distilled=distilled), data, plan.grid[-1]), len(plan.steps)
        else:
            found = errors(bench, data, steps, distilled=distilled)
            gap, calls = found.end, found.calls
        if math.isfinite(gap) and gap > 0:
            points.append((calls, max(gap, 1e-16)))
    if points:
        axis.loglog(*zip(*points, strict=True), linestyle="--" if stochastic else "-", **look)


def dress(axes: dict[str, Any], steps: int) -> None:
    """Write titles, labels, reference slopes and the legend."""
    axes["levels"].set(title=f"Noise levels at {steps} steps", xlabel="network call", ylabel="sigma / alpha")
    axes["lambdas"].set(title="The same in lambda", xlabel="network call", ylabel="lambda = log(alpha / sigma)")
    axis = axes["errors"]
    axis.set(
        title="Error at the end against the exact solution", xlabel="network calls",
        ylabel="of samples; dashed: of mean and deviation",
    )  # fmt: skip
    lines = axis.get_lines()
    reference_slopes(axis)
    numbers = sorted({int(x) for line in lines for x in line.get_xdata()})
    ticks = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if numbers and numbers[0] <= n <= numbers[-1] * 1.1]
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.minorticks_off()


def reference_slopes(axis: Any) -> None:
    """Draw what first and second order look like, from above the first point on."""
    points = [(x, y) for line in axis.get_lines() for x, y in zip(*line.get_data(), strict=True)]
    if len(points) < 2:
        return
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top = 1.6 * max(y for _, y in points)
    for order in (1, 2):
        low = top * (left / right) ** order
        axis.loglog([left, right], [top, low], color="#9aa5b4", linewidth=1.1, linestyle=":", zorder=1)
        axis.annotate(
            f"order {order}", (right, low), xytext=(4, 0), textcoords="offset points", color="#7a8595", fontsize=9,
            va="center",
        )  # fmt: skip
