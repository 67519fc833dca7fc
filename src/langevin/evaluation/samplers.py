"""The sampler laboratory: `check` looks at a scheduler from every side and says what it found.

It needs no trained network: data with a known diffusion (`evaluation.analytic`) say what is right. Any object with the
documented protocol can be checked; what cannot be looked at is a row that says why.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.rng import seeded
from ..diffusion.process import Level, preserving
from ..diffusion.table import noised
from .accuracy import look_at_errors
from .analytic import Gaussian
from .convergence import distance, hands
from .driving import Bench, Call, Unreadable, network
from .lab import DISTILLED, ONE, Lab, able, judged, unchecked
from .report import Curve, Finding, Line, Report, Verdict

LADDER = (10, 20, 40, 80)
"""Numbers of steps of the error curves."""
COUNTS = (1, 2, 3, 7, 50, 99, 333, 999, 1000)
"""Numbers of steps whose schedules are looked at for repeated timesteps."""


def check(
    scheduler: Any,
    *,
    steps: int = 20,
    ladder: Sequence[int] = LADDER,
    options: Mapping[str, Any] | None = None,
    space: str | None = None,
    distilled: bool | None = None,
    samples: int = 20_000,
    seed: int = 0,
) -> Report:
    """Examine a scheduler, which stays as it is, and return the report.

    Args:
        scheduler: one of this library's, or any object with `set_timesteps`, `timesteps` and `step`.
        steps: the number of steps of the checks that need one.
        ladder: the numbers of steps of the error curves, ascending.
        options: keywords of `set_timesteps` and `step`, such as `eta`.
        space: "preserving" (alpha^2 + sigma^2 = 1), "exploding" (alpha = 1) or "flow" (alpha + sigma = 1): where the
            samples of a foreign scheduler live; None reads it off the object.
        distilled: whether it expects a network that jumps along the probability flow; None knows the public names.
        samples: numbers drawn to look at the distribution of a stochastic sampler.

    Raises:
        ConfigError: when the object lacks the protocol. InputError: for steps below 1.
    """
    if steps < 1 or not ladder or min(ladder) < 1:
        raise InputError(f"steps and ladder count from 1; given: {steps} and {list(ladder)}.")
    bench = Bench(scheduler, options=options, space=space)
    named = bench.name in DISTILLED if distilled is None else distilled
    lab = Lab(bench, steps, tuple(sorted(set(ladder))), samples, seed, named)
    try:
        schedule = bench.schedule(steps)
    except Exception as error:
        return Report(bench.name, "cannot be examined", steps, (unchecked("schedule", "noise levels", error),))
    findings: list[Finding] = []
    curves: list[Curve] = []
    for topic, look in ASPECTS.items():
        try:
            for found in look(lab):
                findings.append(found) if isinstance(found, Finding) else curves.append(found)
        except Exception as error:
            findings.append(unchecked(topic, "not finished", error))
    kind = "with its own preconditioning" if schedule.prediction.scaling else schedule.prediction.kind
    about = f"{schedule.space} levels read from {schedule.source}; outputs: {kind}"
    return Report(bench.name, about, steps, tuple(findings), lines(schedule.calls), tuple(curves))


def lines(calls: Sequence[Call]) -> tuple[Line, ...]:
    """Return the printed schedule."""
    return tuple(
        Line(k, c.timestep, c.level.alpha, c.level.sigma, c.level.lam, c.in_scale) for k, c in enumerate(calls)
    )


# ---- calls -----------------------------------------------------------------------------------------------------------


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


# ---- both ends -------------------------------------------------------------------------------------------------------


def look_at_ends(lab: Lab) -> Iterator[Finding]:
    """Compare the first level with the noisiest one of the process, and look at where the run ends."""
    bench, schedule = lab.bench, lab.bench.schedule(lab.steps)
    first, last, end = schedule.calls[0].level, schedule.calls[-1].level, schedule.end
    if first.lam > end.lam:
        yield Finding("ends", "direction", None, "", "note", "It goes from data to noise; its ends are not judged.")
        return
    noisiest = noisiest_ratio(bench)
    if noisiest is None:
        yield Finding("ends", "first level against the noisiest", None, "", "note",
                      "Cannot be checked: it names no noisiest level (`alphas_cumprod`, `sigma_max`).")  # fmt: skip
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


# ---- exactness -------------------------------------------------------------------------------------------------------


def look_at_exactness(lab: Lab) -> Iterator[Finding]:
    """Give the network's place to the exact noise: from every start the run must end at the data."""
    bench, limit = lab.bench, 1e-5 if lab.bench.has_table else 1e-4
    cases = {steps: recovered(lab, steps, 0) for steps in dict.fromkeys((1, 2, 5, lab.steps)) if able(bench, steps)}
    if not cases:
        yield Finding("exactness", "exact noise", None, "", "note", "Cannot be checked: it refuses 1, 2 and 5 steps.")
    elif None in cases.values():
        yield Finding("exactness", "exact noise", None, "", "note",
                      "Cannot be checked: noise is drawn and stays in the end, so no sample is right.")  # fmt: skip
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
    firsts = begins(bench, lab.steps)
    inside = {first: recovered(lab, lab.steps, first) or (0.0, 0.0) for first in firsts}
    if not inside:
        yield Finding("exactness", "begin index", None, "", "note", "Cannot be checked: the run has one step only.")
        return
    worst = max(inside, key=lambda first: max(inside[first]))
    yield judged(
        "exactness", f"exact noise from begin index {', '.join(map(str, firsts))}", max(inside[worst]), limit,
        "Runs that begin inside the schedule end at the data too.",
        f"Runs that begin inside the schedule miss the data; the worst begins at {worst}.",
    )  # fmt: skip


def in_the_limit(lab: Lab, gap: float) -> bool:
    """Tell whether thirty times the steps end much nearer to the data."""
    if not able(lab.bench, 30 * lab.steps):
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
    noise = torch.randn(ONE.mean.shape, generator=seeded(lab.seed), dtype=torch.float64)  # type: ignore[union-attr]
    x = noised(ONE.mean, noise, level)  # type: ignore[arg-type]
    model, seen = network(ONE, schedule.prediction), list[Tensor]()
    run = lab.bench.by_hand if hands(lab.bench, steps) else lab.bench.run
    run(steps, model, x, generator=seeded(lab.seed), first=first, watch=seen.append)
    levels = [*(call.level for call in schedule.calls[first + 1 :]), end]
    if end.sigma > 0 and (clean := distance(seen[-1], ONE.mean)) <= 1e-5:  # type: ignore[arg-type]
        return clean, 0.0
    if end.sigma > 0 and lab.stochastic:
        return None
    gaps = [
        distance(x, noised(ONE.mean, noise, level)) / max(level.norm, 1.0)  # type: ignore[arg-type]
        for x, level in zip(seen, levels, strict=True)
    ]
    return gaps[-1], 0.0 if lab.stochastic else max(gaps)


# ---- the protocol ----------------------------------------------------------------------------------------------------


def look_at_protocol(lab: Lab) -> Iterator[Finding]:
    """Compare `step` with the table, one image with a batch, one run with the next, `add_noise` with the levels."""
    for what, look in (
        ("`step` by hand against the table", agreement),
        ("images alone against a batch, one generator each", splits),
        ("the same object run twice", again),
        ("scale_model_input against the level", scaling),
        ("add_noise against the level", noising),
    ):
        try:
            yield look(lab, what)
        except Exception as error:
            yield unchecked("protocol", what, error)


def agreement(lab: Lab, what: str) -> Finding:
    """Run by hand and by the table with equal draws."""
    x, model, results = lab.begin(2), lab.model(), []
    for run in (lab.bench.by_table, lab.bench.by_hand):
        generators = [seeded(1), seeded(2)] if lab.bench.takes_generator else None
        results.append(run(lab.steps, model, x, generator=generators))
    return judged(
        "protocol", what, distance(*results), 1e-9, "A loop of one's own and the table are the same run.",
        "A loop of one's own and the table end at different samples.",
    )  # fmt: skip


def splits(lab: Lab, what: str) -> Finding:
    """Run three images together, and each alone."""
    x, model = lab.begin(3), lab.model()

    def run(rows: list[int]) -> Tensor:
        generators = [seeded(10 + k) for k in rows] if lab.bench.takes_generator else None
        return lab.bench.by_hand(lab.steps, model, x[rows], generator=generators)

    alone = torch.cat([run([k]) for k in range(3)])
    return judged(
        "protocol", what, distance(run([0, 1, 2]), alone), 1e-6,
        "An image does not depend on its neighbours in the batch.",
        "An image changes with its neighbours in the batch, so a seed does not name a picture.",
    )  # fmt: skip


def again(lab: Lab, what: str) -> Finding:
    """Run one object twice, with `set_timesteps` between."""
    scheduler, ends = copy.deepcopy(lab.bench.scheduler), []
    for _ in range(2):
        scheduler.set_timesteps(lab.steps, **lab.bench.shape)
        ends.append(lab.bench.by_hand(lab.steps, lab.model(), lab.begin(), generator=seeded(1), scheduler=scheduler))
    return judged(
        "protocol", what, distance(*ends), 0.0, "Nothing of a run is left behind in the next one.",
        "Something of a run is left behind in the next one, or draws do not come from the generator.",
    )  # fmt: skip


def scaling(lab: Lab, what: str) -> Finding:
    """Compare the factor of the network's input with what brings samples to the variance the network knows."""
    schedule = lab.bench.schedule(lab.steps)
    if schedule.space != "exploding" or all(call.in_scale == 1.0 for call in schedule.calls):
        worst = max(abs(call.in_scale - 1.0) for call in schedule.calls)
    else:
        scaled = schedule.prediction.scaling
        data = float(getattr(scaled, "data", 1.0))
        worst = max(abs(call.in_scale * call.level.spread(data) - 1.0) for call in schedule.calls)
    return judged(
        "protocol", what, worst, 1e-3, "The network sees samples of the variance that it was trained on.",
        "The network sees samples of another variance than its level says.",
    )  # fmt: skip


def noising(lab: Lab, what: str) -> Finding:
    """Compare `add_noise` at the run's own timesteps with the levels."""
    scheduler = lab.bench.ready(lab.steps)
    add = getattr(scheduler, "add_noise", None) or getattr(scheduler, "scale_noise", None)
    if add is None:
        raise Unreadable("it has neither `add_noise` nor `scale_noise`.")
    calls, times = lab.bench.schedule(lab.steps).calls, scheduler.timesteps
    if len(times) != len(calls):
        raise Unreadable("`timesteps` does not hold one entry per call.")
    data, noise = ONE.mean.float(), torch.ones(1, 3, 4, 4)  # type: ignore[union-attr]
    worst, where = 0.0, 0
    for k in dict.fromkeys((0, len(calls) // 3, 2 * len(calls) // 3)):
        time = times[k : k + 1]
        try:
            result = add(data, time, noise) if add.__name__ == "scale_noise" else add(data, noise, time)
        except Exception as error:
            raise Unreadable(f"it does not take the run's own timesteps ({error}).") from error
        gap = distance(result, noised(data, noise, calls[k].level)) / calls[k].level.norm
        if gap > worst:
            worst, where = gap, k
    return judged(
        "protocol", what, worst, 1e-4, "A picture noised to a timestep lies at the level of that step.",
        f"A picture noised to timestep {calls[where].timestep:g} does not lie at the level of call {where}: a run that "
        "starts from a picture starts beside its level.", verdict="note",
    )  # fmt: skip


ASPECTS: dict[str, Callable[[Lab], Iterator[Any]]] = {
    "calls": look_at_calls,
    "ends": look_at_ends,
    "exactness": look_at_exactness,
    "protocol": look_at_protocol,
    "errors": look_at_errors,
}
"""What `check` looks at, in order; each yields findings and curves."""
