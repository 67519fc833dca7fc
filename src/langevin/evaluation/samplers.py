"""The sampler laboratory: `check` looks at a scheduler from every side and says what it found.

It needs no trained network: data with a known diffusion (`evaluation.analytic`) say what is right. Any object with the
documented protocol can be checked; what cannot be looked at is a row that says why.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.rng import seeded
from ..diffusion.process import Level, preserving
from ..diffusion.table import noised
from .analytic import Gaussian, Mixture
from .convergence import (
    COARSE,
    FINE,
    SMOOTH,
    distance,
    errors,
    hands,
    labelling,
    moments,
    sampled,
    shares,
    smooth,
    smooth_errors,
    weak_error,
)
from .driving import Bench, Call, Network, Unreadable, network
from .report import Curve, Finding, Line, Report, Verdict

LADDER = (10, 20, 40, 80)
"""Numbers of steps of the error curves."""
COUNTS = (1, 2, 3, 7, 50, 99, 333, 999, 1000)
"""Numbers of steps whose schedules are looked at for repeated timesteps."""
DISTILLED = frozenset({"LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler"})
"""Samplers of networks that jump along the probability flow."""
ONE = Gaussian(torch.linspace(-0.6, 0.6, 48, dtype=torch.float64).reshape(1, 3, 4, 4), 0.0)
"""A data set of one picture, whose perfect network returns the exact noise of its sample."""


@dataclass(frozen=True)
class Lab:
    """A bench, and how much is to be done on it."""

    bench: Bench
    steps: int
    ladder: tuple[int, ...]
    samples: int
    seed: int
    distilled: bool

    @property
    def stochastic(self) -> bool:
        """Whether a run draws noise: by its table, or because two seeds end differently."""
        if self.bench.has_table:
            return self.bench.plan(self.steps).stochastic
        if not self.bench.takes_generator:
            return False
        ends = [self.bench.by_hand(self.steps, self.model(), self.begin(), generator=seeded(k)) for k in (0, 1)]
        return not torch.equal(*ends)

    @property
    def floor(self) -> float:
        """What counts as rounding."""
        return FINE if self.bench.has_table else COARSE

    def model(self) -> Network:
        """Return the perfect network of Gaussian data for this scheduler."""
        return network(Gaussian(), self.bench.schedule(self.steps).prediction, distilled=self.distilled)

    def begin(self, batch: int = 1, *, seed: int = 3) -> Tensor:
        """Return `batch` first samples, each from a seed of its own."""
        level = self.bench.schedule(self.steps).calls[0].level
        return torch.cat([Gaussian().noised((1, 3, 4, 4), level, seeded(seed + k)) for k in range(batch)])


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


def unchecked(topic: str, what: str, error: Exception) -> Finding:
    """Return the row for what could not be looked at: a note where it was not there to see, a fault where it failed."""
    if isinstance(error, Unreadable):
        return Finding(topic, what, None, "", "note", f"Cannot be checked: {error}")
    return Finding(topic, what, None, "", "fault", f"It raised {type(error).__name__}: {error}")


def lines(calls: Sequence[Call]) -> tuple[Line, ...]:
    """Return the printed schedule."""
    return tuple(
        Line(k, c.timestep, c.level.alpha, c.level.sigma, c.level.lam, c.in_scale) for k, c in enumerate(calls)
    )


def judged(
    topic: str, what: str, figure: float, limit: float, good: str, bad: str, *, verdict: str = "fault"
) -> Finding:
    """Return a row that is ok up to `limit` and has `verdict` beyond it, with the sentence of its side."""
    ok = figure <= limit
    return Finding(topic, what, figure, f"<= {limit:g}", "ok" if ok else verdict, good if ok else bad)  # type: ignore[arg-type]


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
        yield Finding("ends", "direction", None, "", "note", "The run goes from data to noise; its ends are not judged.")
        return
    noisiest = noisiest_ratio(bench)
    if noisiest is None:
        yield Finding("ends", "first level against the noisiest", None, "", "note",
                      "Cannot be checked: it names no noisiest level (no `alphas_cumprod`, no `sigma_max`).")  # fmt: skip
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
                      "Cannot be checked: it draws noise and ends above sigma = 0, so no sample is the right one.")  # fmt: skip
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


def able(bench: Bench, steps: int) -> bool:
    """Tell whether a run of `steps` can be set up."""
    try:
        return bool(bench.schedule(steps).calls)
    except Exception:
        return False


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
        data = scaled.data if scaled else 1.0
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


# ---- errors ----------------------------------------------------------------------------------------------------------


def look_at_errors(lab: Lab) -> Iterator[Finding | Curve]:
    """Compare with the exact solution, by number of steps."""
    ladder = [steps for steps in lab.ladder if able(lab.bench, steps)]
    if len(ladder) < len(lab.ladder):
        left = [steps for steps in lab.ladder if steps not in ladder]
        yield Finding("errors", "numbers of steps refused", len(left), "", "note",
                      f"It does not run {', '.join(map(str, left))} steps; the curves leave them out.")  # fmt: skip
    if len(ladder) < 2:
        raise Unreadable("fewer than two numbers of steps can be run")
    yield from drawn(lab, ladder) if lab.stochastic else flowing(lab, ladder)


def flowing(lab: Lab, ladder: list[int]) -> Iterator[Finding | Curve]:
    """The errors of a deterministic sampler: of the sample itself."""
    found = [errors(lab.bench, Gaussian(), steps, distilled=lab.distilled) for steps in ladder]
    calls = tuple(e.calls for e in found)
    end = Curve("Gaussian data, end sample", tuple(ladder), calls, tuple(e.end for e in found), lab.floor)
    yield end
    curve, inner = None, [e.inner for e in found if e.inner is not None]
    if len(inner) == len(found):
        curve = Curve("Gaussian data, sample before the last call", tuple(ladder), calls, tuple(inner), lab.floor)
        yield curve
    if not lab.distilled:
        mixed = [errors(lab.bench, Mixture(), steps) for steps in ladder]
        yield Curve("mixture data, end sample", tuple(ladder), calls, tuple(e.end for e in mixed), lab.floor)
    if lab.bench.has_table:
        curve = yield from smoothly(lab, "sample")
    elif curve is None or (end.order or 9.0) > (curve.order or 9.0):
        curve = end
    yield order_finding(lab, curve or end, end)
    yield end_finding(end)


def drawn(lab: Lab, ladder: list[int]) -> Iterator[Finding | Curve]:
    """The errors of a stochastic sampler: of the mean and the standard deviation at the end."""
    bench, data = lab.bench, Gaussian()
    target = bench.schedule(lab.steps).end
    mean, deviation = target.alpha * float(data.mean), math.sqrt(data.variance(target))
    by_table, refused = None, None
    try:
        by_table = moments(bench.plan(lab.steps), data, distilled=lab.distilled)
    except Unreadable as error:
        refused = error
    if by_table is not None:
        plans = [bench.plan(steps) for steps in ladder]
        gaps = tuple(weak_error(moments(p, data, distilled=lab.distilled), data, p.grid[-1]) for p in plans)
        calls = tuple(len(p.steps) for p in plans)
        end = Curve("Gaussian data, mean and deviation at the end", tuple(ladder), calls, gaps, lab.floor)
        yield end
        yield order_finding(lab, (yield from smoothly(lab, "mean and deviation")), end)
    else:
        yield unchecked("errors", "mean and deviation by the table", refused or Unreadable("there is no table"))
        runs = [sampled(bench, data, n, count=lab.samples, seed=lab.seed, distilled=lab.distilled) for n in ladder]
        gaps = tuple(max(abs(r.mean - mean), abs(r.deviation - deviation)) for r in runs)
        calls = tuple(len(bench.schedule(n).calls) for n in ladder)
        floor = 3 * max(r.mean_error for r in runs)
        end = Curve("Gaussian data, mean and deviation of samples at the end", tuple(ladder), calls, gaps, floor)
        yield end
    yield end_finding(end)
    run = sampled(bench, data, lab.steps, count=lab.samples, seed=lab.seed, distilled=lab.distilled)
    says = f"drawn: {run.mean:.4f} ± {run.mean_error:.4f} and {run.deviation:.4f} ± {run.deviation_error:.4f}"
    if by_table:
        yield judged(
            "errors", "draws against the table's own mean and deviation, in standard errors",
            run.sigmas(*by_table), 4.5, f"The draws are distributed as the table says ({says}).",
            f"The draws are not distributed as the table says, {by_table[0]:.4f} and {by_table[1]:.4f} ({says}).",
        )  # fmt: skip
    off = max(abs(run.mean - mean), abs(run.deviation - deviation))
    yield judged(
        "errors", f"mean and deviation of samples at {lab.steps} steps: distance to the data's", off,
        0.1 * deviation + 3 * run.mean_error, f"The data's are {mean:.4f} and {deviation:.4f}; {says}.",
        f"The data's are {mean:.4f} and {deviation:.4f}; {says}: the sampler changes the distribution.", verdict="note",
    )  # fmt: skip
    if not lab.distilled:
        gap, statistical = shares(bench, Mixture(), lab.steps, count=2000, seed=lab.seed)
        yield judged(
            "errors", f"shares of three components at {lab.steps} steps: largest error", gap, 0.03 + 3 * statistical,
            "Every component of the mixture is drawn about as often as it should be.",
            "Some components of the mixture are drawn too often, others too seldom.", verdict="note",
        )  # fmt: skip


def smoothly(lab: Lab, what: str) -> Iterator[Curve]:
    """Yield and return the errors on levels that are even in lambda."""
    dense = next(steps for steps in (999, 250, *sorted(lab.ladder, reverse=True)) if able(lab.bench, steps))
    plan, space = lab.bench.plan(dense), lab.bench.schedule(dense).space
    if space == "other":
        raise Unreadable("its levels are of no known space, so no smooth ones can be made")
    label = labelling(plan)
    plans = [smooth(plan, space, count, label) for count in SMOOTH]
    gaps = tuple(smooth_errors(p, Gaussian(), distilled=lab.distilled) for p in plans)
    calls = tuple(len(p.steps) for p in plans)
    curve = Curve(f"Gaussian data, {what}, levels even in lambda", SMOOTH, calls, gaps, lab.floor)
    yield curve
    return curve


def order_finding(lab: Lab, curve: Curve, own: Curve) -> Finding:
    """Judge the slope of an error curve against the order that the configuration names, or else against 1.

    Args:
        own: the errors on the scheduler's own levels, which excuse a solver that smooth levels do not suit.
    """
    named = lab.bench.config("solver_order") if lab.bench.has_table else None
    wanted = int(named) if named is not None else 1
    what, limit = f"observed order ({curve.what})", f">= {wanted - 0.4:g}"
    if not all(math.isfinite(e) for e in curve.errors):
        return Finding("errors", what, None, "", "fault", "Runs end with NaN or infinity.")
    if curve.order is None:
        return Finding("errors", what, None, "", "ok", "It is exact at every number of steps, up to rounding.")
    if lab.distilled:
        return judged(
            "errors", f"largest error ({own.what})", max(own.errors), 0.01,
            "A network that jumps along the flow is followed at every number of steps.",
            "A network that jumps along the flow is not followed.",
        )  # fmt: skip
    meaning = f"Twice the steps divide the error by {2**curve.order:.1f}."
    if not lab.bench.has_table:
        meaning += " Its own levels and the last jump have a part in that."
    if curve.order < 0.7:
        helped = (own.order or 0.0) >= 0.7
        bad = "More steps hardly lead to the exact solution" + (", but they do on its own levels." if helped else ".")
        return Finding("errors", what, curve.order, limit, "note" if helped else "fault", bad)
    short = curve.order < wanted - 0.4
    if short:
        meaning += f" The configuration asks for order {wanted}, of which that is short."
    return Finding("errors", what, curve.order, limit, "note" if short else "ok", meaning)


def end_finding(curve: Curve) -> Finding:
    """Judge whether the error at the end falls with the steps on the scheduler's own levels."""
    first, last = curve.errors[0], curve.errors[-1]
    gain = first / last if last > 0 else math.inf
    what = f"error at {curve.steps[-1]} steps on its own levels ({curve.what})"
    if not math.isfinite(last):
        return Finding("errors", what, None, "", "fault", "Runs end with NaN or infinity.")
    fine = last <= max(1e-3, first / 2)
    meaning = f"It fell by a factor of {gain:.3g} from {curve.steps[0]} to {curve.steps[-1]} steps."
    if not fine:
        meaning += " It hardly falls: the last jump to the end, or the levels themselves, set it and not the solver."
    return Finding("errors", what, last, "", "ok" if fine else "note", meaning)


ASPECTS: dict[str, Callable[[Lab], Iterator[Any]]] = {
    "calls": look_at_calls,
    "ends": look_at_ends,
    "exactness": look_at_exactness,
    "protocol": look_at_protocol,
    "errors": look_at_errors,
}
"""What `check` looks at, in order; each yields findings and curves."""
