"""Both ends of a run: the first level against the noisiest one of the process, and where the run ends."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..diffusion.process import Level, preserving
from .driving import Bench
from .lab import Lab, judged, unchecked
from .report import Finding
from .schedule import Unreadable


def look_at_ends(lab: Lab) -> Iterator[Finding]:
    """Compare the first level with the noisiest one of the process, and look at where the run ends."""
    bench, schedule = lab.bench, lab.bench.schedule(lab.steps)
    first, last, end = schedule.calls[0].level, schedule.calls[-1].level, schedule.end
    if first.lam > end.lam:
        yield Finding("ends", "direction", None, "", "note", "It goes from data to noise; its ends are not judged.")
        return
    noisiest = noisiest_ratio(bench)
    if noisiest is None:
        reason = Unreadable("it names no noisiest level (`alphas_cumprod`, `sigma_max`).")
        yield unchecked("ends", "first level against the noisiest", reason)
    else:
        part = 1.0 if math.isinf(noisiest) and math.isinf(first.ratio) else first.ratio / noisiest
        ok = part >= 0.99
        yield Finding(
            "ends", "first sigma / alpha as part of the noisiest", part, ">= 0.99", "ok" if ok else "note",
            "The run starts where the process is noisiest." if ok else
            f"The run starts at sigma / alpha = {first.ratio:.4g}, although the process goes up to {noisiest:.4g}: the "
            "network is handed pure noise at a level where it expects traces of a picture.",
        )  # fmt: skip
    left = first.alpha / math.hypot(first.alpha, first.sigma)
    yield judged(
        "ends", "share of the data left in the first sample", left, 0.02,
        "The first level is noise but for a trace.",
        "The process never reaches pure noise: trained samples keep this share of their data at the first level, which "
        "a run from pure noise lacks (seen as grey mean brightness; see zero terminal SNR).", verdict="note",
    )  # fmt: skip
    yield initial(bench, first, schedule.init_sigma)
    yield judged(
        "ends", "sigma / alpha at the end", end.ratio, 0.0, "The run ends at clean data.",
        "The run ends before sigma = 0, so this much noise stays in the picture, relative to the data.", verdict="note",
    )  # fmt: skip
    yield Finding("ends", "sigma / alpha at the last call", last.ratio, "", "ok",
                  "The last call jumps from here to the end in one step.")  # fmt: skip


def initial(bench: Bench, first: Level, found: float) -> Finding:
    """Compare the deviation of the first sample with its level, for data of no or of unit variance."""
    what = "relative error of `init_noise_sigma`"
    if not hasattr(bench.scheduler, "init_noise_sigma") and not hasattr(bench.ready(1), "init_noise_sigma"):
        return unchecked("ends", what, Unreadable("it has none, and runs start from whatever they are given."))
    gap = min(abs(found / wanted - 1) for wanted in (first.sigma, first.norm))
    return judged(
        "ends", what, gap, 0.02, "The first sample has the deviation that its level asks for.",
        f"The first sample has deviation {found:.4g}, but its level asks for {first.norm:.4g}.",
    )  # fmt: skip


def noisiest_ratio(bench: Bench) -> float | None:
    """Return the highest sigma / alpha that the process has, or None where the scheduler does not say."""
    bars = getattr(bench.scheduler, "alphas_cumprod", None)
    if bars is not None:
        return preserving(0, math.sqrt((1 - float(min(bars))) / float(min(bars)))).ratio if min(bars) > 0 else math.inf
    high = bench.config("sigma_max")
    return float(high) if high is not None else None
