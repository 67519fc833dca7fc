"""How sure a figure is: bootstrap intervals (Efron 1979, doi 10.1214/aos/1176344552), and a comparison's verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.rng import seeded

Better = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "no difference seen"]

RESAMPLES = 1000
FEWEST = 6
"""Pairs below which no verdict is given: if all of 5 agree in sign, chance does that in 1 of 16 comparisons."""
Z = 1.959964
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Measure:
    """A figure with its 95 % interval.

    Attributes:
        name: what was measured.
        value: the figure.
        low, high: its interval.
        count: how many prompts, or pictures where there are no prompts, it rests on.
        better: whether higher or lower is better.
    """

    name: str
    value: float
    low: float
    high: float
    count: int
    better: Better


@dataclass(frozen=True)
class Difference(Measure):
    """The figure of the first minus that of the second, on the same prompts; `first` and `second` are both figures."""

    first: float
    second: float

    @property
    def verdict(self) -> Verdict:
        """How the first compares with the second: a difference is seen where the interval leaves out 0."""
        if self.count < FEWEST or self.low <= 0 <= self.high:
            return "no difference seen"
        return "better" if (self.low > 0) == (self.better == "higher") else "worse"


def counts(groups: int, *, resamples: int, seed: int) -> Tensor:
    """Return how often each of `groups` is drawn in each resample: float64 (resamples, groups), rows sum to `groups`.

    Raises:
        InputError: for less than 2 groups or 20 resamples.
    """
    if groups < 2:
        raise InputError("An interval needs at least two pictures (or two prompts); give more.")
    if resamples < 20:
        raise InputError(f"resamples is {resamples}; an interval needs at least 20, better {RESAMPLES}.")
    drawn = torch.randint(groups, (resamples, groups), generator=seeded(seed))
    return torch.zeros(resamples, groups, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones((), dtype=torch.float64).expand(resamples, groups)
    )


def interval(value: float, replicates: Tensor, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a figure from its values on resamples of `count` things.

    The spread of the replicates about their own mean is laid around the figure, because a distance between resamples
    is larger than the one between the sets. It is stretched by what n < infinity takes from it (Hesterberg 2015,
    arXiv 1411.5279, section 4.1): the ratio of Student's and the normal quantile, and sqrt(n / (n - 1)).
    """
    spread = torch.quantile(replicates.double() - replicates.double().mean(), torch.tensor([0.025, 0.975]).double())
    stretch = student(count - 1) / Z * math.sqrt(count / (count - 1))
    low, high = (value + stretch * spread).tolist()
    return low, high


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; exact for 1 and 2 degrees of freedom, to 1 % for 3, better above.

    Source: the expansion 26.7.5 of Abramowitz and Stegun (1964).
    """
    if freedom <= 2:
        return (12.7062, 4.3027)[max(freedom, 1) - 1]
    z = Z
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def measured(name: str, values: Sequence[float] | Tensor, *, better: Better, resamples: int, seed: int) -> Measure:
    """Return the mean of independent values with its interval."""
    values = torch.as_tensor(values, dtype=torch.float64)
    replicates = counts(len(values), resamples=resamples, seed=seed) @ values / len(values)
    mean = math.fsum(values.tolist()) / len(values)
    return Measure(name, mean, *interval(mean, replicates, len(values)), len(values), better)


def paired(
    name: str,
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    better: Better = "higher",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two sets of scores prompt by prompt: prompts are resampled, so what makes one hard counts for both.

    Args:
        first, second: prompt -> score.

    Raises:
        InputError: when the prompts differ.
    """
    other = sorted(set(first) ^ set(second))
    if other:
        raise InputError(f"{name}: {len(other)} prompts have a score on one side only, such as {other[0]!r}.")
    prompts = sorted(first)
    one, two = (torch.tensor([side[prompt] for prompt in prompts], dtype=torch.float64) for side in (first, second))
    gap = measured(name, one - two, better=better, resamples=resamples, seed=seed)
    return Difference(name, gap.value, gap.low, gap.high, gap.count, better, one.mean().item(), two.mean().item())
