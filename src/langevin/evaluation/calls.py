"""The calls that a sampler makes: how many, whether one timestep is asked twice, whether each has an effect."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from ..core.rng import seeded
from .analytic import Gaussian
from .driving import Bench
from .lab import Lab, judged
from .report import Finding, Verdict
from .schedule import Call, network

COUNTS = (1, 2, 3, 7, 50, 99, 333, 999, 1000)
"""Numbers of steps whose schedules are looked at for repeated timesteps."""


def look_at_calls(lab: Lab) -> Iterator[Finding]:
    """Count the calls, repeated timesteps and calls without effect."""
    bench, steps = lab.bench, lab.steps
    made, order = len(bench.schedule(steps).calls), bench.order
    declared = (order * steps - order + 1, order * steps)
    fits = declared[0] <= made <= declared[1]
    wanted = str(declared[1]) if order == 1 else f"{declared[0]} to {declared[1]}"
    yield Finding(
        "calls", f"network calls for {steps} steps", made, f"declared: {wanted}", "ok" if fits else "note",
        f"Its order is declared as {order}, which the calls {'fit' if fits else 'do not fit: count `len(timesteps)`'}.",
    )  # fmt: skip
    times = [call.timestep for call in bench.schedule(steps).calls]
    runs = max(len(list(group)) for _, group in groupby(times))
    yield judged(
        "calls", "times that one timestep is asked in a row", runs, order,
        "No timestep is asked more often than the declared order says.",
        "A timestep is asked more often than the declared order says; the network is paid for twice there.",
        verdict="note",
    )  # fmt: skip
    yield repeated(bench)
    weights = effects(lab)
    idle = [k for k, weight in enumerate(weights) if weight == 0]
    yield judged(
        "calls", "calls whose output changes no later sample", len(idle), 0,
        "Every network call has an effect.", f"The outputs of calls {idle} are paid for and thrown away.",
        verdict="note",
    )  # fmt: skip
    least = min(weights)
    yield Finding("calls", "least effect of a changed output on a later sample", least, "", "ok",
                  "An output changed by 1 moves some later sample by at least this much.")  # fmt: skip


def repeated(bench: Bench) -> Finding:
    """Look for repeated timesteps over many numbers of steps."""
    bad, refused = [], []
    for steps in COUNTS:
        try:
            times = [call.timestep for call in bench.schedule(steps).calls]
        except Exception:
            refused.append(steps)
            continue
        if max(len(list(group)) for _, group in groupby(times)) > bench.order:
            bad.append(steps)
    tried = f"tried: {', '.join(map(str, COUNTS))}" + (f"; refused: {', '.join(map(str, refused))}" if refused else "")
    meaning = "The network is asked the same thing twice at these numbers of steps: " + ", ".join(map(str, bad)) + "."
    if not bad:
        meaning = "No number of steps repeats a timestep beyond the declared order."
    verdict: Verdict = "note" if bad else "ok"
    return Finding("calls", "numbers of steps with repeated timesteps", len(bad), tried, verdict, meaning)


def effects(lab: Lab) -> list[float]:
    """Return for every call by how much any later sample moves when its output is changed by 1.

    Row j of a batch is changed at call j; a second run without changes, with equal draws, is what it is compared to.
    """
    bench, schedule = lab.bench, lab.bench.schedule(lab.steps)
    count = len(schedule.calls)
    model, x = network(Gaussian(), schedule.prediction), lab.begin().expand(count, -1, -1, -1)

    def run(change: float) -> list[Tensor]:
        seen: list[Tensor] = []
        turn = iter(range(count))

        def changed(x: Tensor, call: Call) -> Tensor:
            output = model(x, call).clone()
            output[next(turn), : x.shape[1]] += change
            return output

        bench.run(lab.steps, changed, x, generator=seeded(lab.seed), watch=seen.append)
        return seen

    gaps = [(a - b).abs().flatten(1).amax(1) for a, b in zip(run(0.0), run(1.0), strict=True)]
    return [float(v) for v in torch.stack(gaps).amax(0)]
