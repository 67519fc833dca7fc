"""Errors against the exact solution as findings: order, size, and the distribution of drawn samples."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

from .analytic import Gaussian, Mixture
from .convergence import SMOOTH, errors, labelling, moments, sampled, shares, smooth, smooth_errors, weak_error
from .lab import Lab, judged, unchecked
from .report import Curve, Finding
from .schedule import Unreadable


def look_at_errors(lab: Lab) -> Iterator[Finding | Curve]:
    """Compare with the exact solution, by number of steps."""
    ladder = [steps for steps in lab.ladder if lab.bench.able(steps)]
    if len(ladder) < len(lab.ladder):
        left = [steps for steps in lab.ladder if steps not in ladder]
        yield Finding("errors", "numbers of steps refused", len(left), "", "note",
                      f"It does not run {', '.join(map(str, left))} steps; the curves leave them out.")  # fmt: skip
    if len(ladder) < 2:
        raise Unreadable("fewer than two numbers of steps can be run")
    draws = lab.stochastic or (lab.bench.has_table and any(lab.bench.plan(steps).stochastic for steps in ladder))
    yield from drawn(lab, ladder) if draws else flowing(lab, ladder)


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


def smoothly(lab: Lab, what: str) -> Generator[Curve, None, Curve]:
    """Yield and return the errors on levels that are even in lambda."""
    dense = next(steps for steps in (999, 250, *sorted(lab.ladder, reverse=True)) if lab.bench.able(steps))
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
