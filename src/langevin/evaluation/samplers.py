"""The sampler laboratory: `check` looks at a scheduler from every side and says what it found.

It needs no trained network: data with a known diffusion (`evaluation.analytic`) say what is right. Any object with the
documented protocol can be checked; what cannot be looked at is a row that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..core.errors import InputError
from .accuracy import look_at_errors
from .calls import look_at_calls
from .driving import Bench
from .ends import look_at_ends
from .exactness import look_at_exactness
from .lab import DISTILLED, Lab, unchecked
from .protocol import look_at_protocol
from .report import Curve, Finding, Line, Report
from .schedule import Call

LADDER = (10, 20, 40, 80)
"""Numbers of steps of the error curves."""


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


ASPECTS: dict[str, Callable[[Lab], Iterator[Any]]] = {
    "calls": look_at_calls,
    "ends": look_at_ends,
    "exactness": look_at_exactness,
    "protocol": look_at_protocol,
    "errors": look_at_errors,
}
"""What `check` looks at, in order; each yields findings and curves."""
