"""The set-up of the sampler laboratory: what every look at a scheduler shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.rng import seeded
from .analytic import Gaussian
from .convergence import COARSE, FINE
from .driving import Bench
from .report import Finding, Verdict
from .schedule import Network, Unreadable, network

DISTILLED = frozenset({"LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler"})
"""Samplers of networks that jump along the probability flow."""
PICTURE = torch.linspace(-0.6, 0.6, 48, dtype=torch.float64).reshape(1, 3, 4, 4)
ONE = Gaussian(PICTURE, 0.0)
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

    @cached_property
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


def unchecked(topic: str, what: str, error: Exception) -> Finding:
    """Return the row for what could not be looked at: a note where it was not there to see, a fault where it failed."""
    if isinstance(error, Unreadable):
        return Finding(topic, what, None, "", "note", f"Cannot be checked: {error}")
    return Finding(topic, what, None, "", "fault", f"It raised {type(error).__name__}: {error}")


def judged(
    topic: str, what: str, figure: float, limit: float, good: str, bad: str, *, verdict: Verdict = "fault"
) -> Finding:
    """Return a row that is ok up to `limit` and has `verdict` beyond it, with the sentence of its side."""
    ok = figure <= limit
    return Finding(topic, what, figure, f"<= {limit:g}", "ok" if ok else verdict, good if ok else bad)
