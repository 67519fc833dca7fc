"""Exactness: with the exact noise in the network's place a run must end at the data, from wherever it begins."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.rng import seeded
from ..diffusion.process import noised
from .convergence import distance
from .driving import Bench
from .lab import ONE, PICTURE, Lab, judged, unchecked
from .report import Finding
from .schedule import Unreadable, network


def look_at_exactness(lab: Lab) -> Iterator[Finding]:
    """Give the network's place to the exact noise: from every start the run must end at the data."""
    bench, limit = lab.bench, 1e-5 if lab.bench.has_table else 1e-4
    cases = {steps: recovered(lab, steps, 0) for steps in dict.fromkeys((1, 2, 5, lab.steps)) if bench.able(steps)}
    if not cases:
        yield unchecked("exactness", "exact noise", Unreadable("it refuses 1, 2 and 5 steps."))
    elif None in cases.values():
        reason = Unreadable("noise is drawn and stays in the end, so no sample is right.")
        yield unchecked("exactness", "exact noise", reason)
        return
    else:
        found = {steps: gaps for steps, gaps in cases.items() if gaps}
        tried = ", ".join(map(str, found))
        worst = max(found, key=lambda steps: found[steps][0])
        slow = found[worst][0] > limit and in_the_limit(lab, found[lab.steps][0])
        if slow:
            yield Finding("exactness", f"exact noise, {lab.steps} steps: distance to the data", found[lab.steps][0],
                          f"<= {limit:g}", "note", "It ends at the data only in the limit of many steps.")  # fmt: skip
            return
        yield judged(
            "exactness", f"exact noise, {tried} steps: distance to the data", found[worst][0], limit,
            "With the exact noise the run ends at the data.",
            f"With the exact noise the run must end at the data and does not; the worst is {worst} steps.",
        )  # fmt: skip
        if not lab.stochastic:
            worst = max(found, key=lambda steps: found[steps][1])
            yield judged(
                "exactness", f"exact noise, {tried} steps: samples on the way", found[worst][1], limit * 10,
                "Every sample on the way lies at its level.",
                f"Samples on the way do not lie at the level that the network is told; the worst is {worst} steps.",
            )  # fmt: skip
    yield from_inside(lab, limit)


def from_inside(lab: Lab, limit: float) -> Finding:
    """Let the run begin at other calls than its first."""
    firsts = begins(lab.bench, lab.steps)
    inside = {first: recovered(lab, lab.steps, first) or (0.0, 0.0) for first in firsts}
    if not inside:
        return unchecked("exactness", "begin index", Unreadable("the run has one step only."))
    worst = max(inside, key=lambda first: max(inside[first]))
    return judged(
        "exactness", f"exact noise from begin index {', '.join(map(str, firsts))}", max(inside[worst]), limit,
        "Runs that begin inside the schedule end at the data too.",
        f"Runs that begin inside the schedule miss the data; the worst begins at {worst}.",
    )  # fmt: skip


def in_the_limit(lab: Lab, gap: float) -> bool:
    """Tell whether thirty times the steps end much nearer to the data."""
    if not lab.bench.able(30 * lab.steps):
        return False
    fine = recovered(lab, 30 * lab.steps, 0)
    return fine is not None and fine[0] < gap / 10


def begins(bench: Bench, steps: int) -> list[int]:
    """Return a few calls inside a run at which it may begin: any of a table, whole steps of a foreign scheduler."""
    if not bench.has_table and not hasattr(bench.scheduler, "set_begin_index"):
        raise Unreadable(f"{bench.name} has no `set_begin_index`.")
    stride = 1 if bench.has_table else bench.order
    inside = range(stride, len(bench.schedule(steps).calls), stride)
    return sorted({inside[int(part * (len(inside) - 1))] for part in (0.0, 0.3, 0.7, 1.0)}) if inside else []


def recovered(lab: Lab, steps: int, first: int) -> tuple[float, float] | None:
    """Return how far a run with the exact noise ends from the data, and how far it was from its levels on the way.

    Without drawn noise every sample holds the same data and the same noise; with drawn noise only the end is known, and
    nothing (None) where noise stays in the end. A run that hands out its estimate of the data at a last level above 0
    ends at the data.
    """
    schedule = lab.bench.schedule(steps)
    level, end = schedule.calls[first].level, schedule.end
    if level.sigma == 0:
        raise Unreadable("the run starts at sigma = 0, where the noise of a sample is not defined")
    noise = torch.randn(PICTURE.shape, generator=seeded(lab.seed), dtype=torch.float64)
    x = noised(PICTURE, noise, level)
    model, seen = network(ONE, schedule.prediction), list[Tensor]()
    lab.bench.run_steps(steps, model, x, generator=seeded(lab.seed), first=first, watch=seen.append)
    levels = [*(call.level for call in schedule.calls[first + 1 :]), end]
    if end.sigma > 0 and (clean := distance(seen[-1], PICTURE)) <= 1e-5:
        return clean, 0.0
    if end.sigma > 0 and lab.stochastic:
        return None
    gaps = [
        distance(x, noised(PICTURE, noise, level)) / max(level.norm, 1.0) for x, level in zip(seen, levels, strict=True)
    ]
    return gaps[-1], 0.0 if lab.stochastic else max(gaps)
