"""What the sampler laboratory found, as plain data: printable, and JSON by `to_dict`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..diffusion.process import Time

Verdict = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: the group it belongs to.
        what: what was looked at.
        figure: the number found, or None where there is none.
        limit: what the figure is held against, in words, or "".
        verdict: "ok", "note" (worth knowing, and may be intended) or "fault".
        meaning: a plain sentence.
    """

    topic: str
    what: str
    figure: float | int | None
    limit: str
    verdict: Verdict
    meaning: str


@dataclass(frozen=True)
class Curve:
    """Errors against the exact solution by number of steps.

    Attributes:
        what: the data, what the error is of, and where.
        steps, calls, errors: one entry per run.
        floor: errors below this are rounding.
    """

    what: str
    steps: tuple[int, ...]
    calls: tuple[int, ...]
    errors: tuple[float, ...]
    floor: float

    @property
    def order(self) -> float | None:
        """The slope fitted to the errors above rounding; None where fewer than two are."""
        points = [(math.log(n), math.log(e)) for n, e in zip(self.steps, self.errors, strict=True) if e > self.floor]
        if len(points) < 2 or not all(math.isfinite(e) for _, e in points):
            return None
        mean_n, mean_e = (sum(values) / len(points) for values in zip(*points, strict=True))
        square = sum((n - mean_n) ** 2 for n, _ in points)
        return -sum((n - mean_n) * (e - mean_e) for n, e in points) / square


@dataclass(frozen=True)
class Line:
    """One network call of the printed schedule."""

    index: int
    timestep: Time
    alpha: float
    sigma: float
    lam: float
    in_scale: float


@dataclass(frozen=True)
class Report:
    """The findings about one scheduler.

    Attributes:
        name: its class.
        about: space, prediction, where levels were read.
        steps: the number of steps of the checks that need one.
        findings: the rows.
        schedule: the calls at `steps`.
        curves: errors by number of steps.
    """

    name: str
    about: str
    steps: int
    findings: tuple[Finding, ...]
    schedule: tuple[Line, ...] = ()
    curves: tuple[Curve, ...] = ()

    def only(self, verdict: Verdict) -> tuple[Finding, ...]:
        """Return the findings with the given verdict."""
        return tuple(f for f in self.findings if f.verdict == verdict)

    @property
    def ok(self) -> bool:
        """Whether nothing is a fault."""
        return not self.only("fault")

    def to_dict(self) -> dict[str, Any]:
        """Return the report in terms that JSON knows; numbers that it does not know become text."""
        curves = [{**asdict(curve), "order": curve.order} for curve in self.curves]
        return plain({**asdict(self), "curves": curves, "ok": self.ok})

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the report as text, line by line."""
        yield f"{self.name}, {self.steps} steps: {self.about}"
        for topic in dict.fromkeys(f.topic for f in self.findings):
            yield f"\n{topic}"
            for f in self.findings:
                if f.topic == topic:
                    against = f" ({f.limit})" if f.limit else ""
                    yield f"  {f.verdict:<5}  {f.what}: {show(f.figure)}{against}"
                    yield f"         {f.meaning}"
        if self.curves:
            yield "\nerrors by number of steps"
            for curve in self.curves:
                pairs = ", ".join(f"{n}: {e:.2g}" for n, e in zip(curve.steps, curve.errors, strict=True))
                slope = "" if curve.order is None else f"; slope {curve.order:.2f}"
                yield f"  {curve.what}: {pairs}{slope}"
        if self.schedule:
            yield "\nschedule"
            yield from schedule_lines(self.schedule)
        counts = ", ".join(f"{len(self.only(v))} {v}" for v in ("ok", "note", "fault"))
        yield f"\n{self.name}: {counts}"


def schedule_lines(lines: tuple[Line, ...], *, most: int = 12) -> Iterator[str]:
    """Yield a table of the calls; the middle of a long one is left out and said so."""
    yield f"  {'call':>4} {'timestep':>10} {'alpha':>10} {'sigma':>10} {'lambda':>8} {'input x':>9}"
    half = most // 2
    for line in lines:
        if len(lines) > most and half <= line.index < len(lines) - half:
            if line.index == half:
                yield f"  ... {len(lines) - 2 * half} more"
            continue
        yield (
            f"  {line.index:>4} {line.timestep:>10.6g} {line.alpha:>10.5g} {line.sigma:>10.5g} "
            f"{line.lam:>8.3f} {line.in_scale:>9.5g}"
        )


def show(figure: float | int | None) -> str:
    """Return a figure as text."""
    if figure is None:
        return "-"
    return str(figure) if isinstance(figure, int) else f"{figure:.3g}"


def plain(value: Any) -> Any:
    """Return nested data in which every float is finite; others become text."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
