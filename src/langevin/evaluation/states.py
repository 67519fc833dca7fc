"""What is kept while pictures pass by. States add up: those of parts, or of processes, give that of the whole.

`a + b` is the state of both parts, in whatever order. All of them can be pickled, so
`torch.distributed.all_gather_object` and a sum make one state out of those of many processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import InputError, NonFiniteError

KEEP = 10_000
"""Rows of features that are kept, unless more are asked for."""


def checked(features: Tensor) -> Tensor:
    """Return features as they should be: finite and of the shape (pictures, features)."""
    if features.ndim != 2 or 0 in features.shape:
        raise InputError(f"Features have the shape (pictures, features), not {tuple(features.shape)}.")
    if not torch.isfinite(features).all():
        row = int((~torch.isfinite(features).all(1)).nonzero()[0])
        raise NonFiniteError(f"The features of picture {row} of this batch hold NaN or infinity; extract in float32.")
    return features.detach().cpu()


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (the sum of outer products about the mean) of features, in float64.

    Sums are merged about their common mean (Chan, Golub and LeVeque 1983, doi 10.1080/00031305.1983.10483115), so a
    mean far from 0 costs no digits.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Return the moments of features (pictures, features)."""
        rows = checked(features).double()
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def __add__(self, other: Moments) -> Moments:
        if not self.count or not other.count:
            return self if self.count else other
        same_width(len(self.mean), len(other.mean))
        count, gap = self.count + other.count, other.mean - self.mean
        between = torch.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance.

        Raises:
            InputError: for less than two pictures.
        """
        if self.count < 2:
            raise InputError(f"A covariance needs at least two pictures; there are {self.count}.")
        return self.scatter / (self.count - 1)


@dataclass(frozen=True)
class Features:
    """Features of pictures: the moments of all, and the rows of at most `keep` of them.

    Which rows are kept depends on the pictures alone: those of the groups whose hashes are smallest. So it is a random
    choice that is the same in every order and for every way to split the work, and of the same prompts in every set.

    Attributes:
        keep: rows to keep at most.
        moments: of all pictures.
        keys: one per kept row, ascending: a hash of its group, and one of its picture.
        groups: one per kept row: the prompt, or what else belongs together when pictures are resampled.
        rows: float32 (kept, features).
    """

    keep: int = KEEP
    moments: Moments = field(default_factory=Moments)
    keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def add(
        self, features: Tensor, *, keys: Sequence[str] | None = None, groups: Sequence[str] | None = None
    ) -> Features:
        """Return the state with the features of further pictures.

        Args:
            keys: what tells one picture from another, such as a hash of its pixels; None hashes the features.
            groups: the prompt of each; None makes every picture a group of its own.

        Raises:
            InputError: for another number of features, or of keys. NonFiniteError: for NaN or infinity.
        """
        features = checked(features).float()
        names = list(keys) if keys is not None else [row.numpy().tobytes().hex() for row in features]
        belongs = list(groups) if groups is not None else names
        if not len(names) == len(belongs) == len(features):
            raise InputError(f"{len(features)} rows of features came with {len(names)} keys and {len(belongs)} groups.")
        hashes = [digest(group) + digest(name) for group, name in zip(belongs, names, strict=True)]
        labels = belongs if groups is not None else hashes
        return self + Features(self.keep, Moments.of(features), tuple(hashes), tuple(labels), features)

    def __add__(self, other: Features) -> Features:
        if self.keep != other.keep:
            raise InputError(f"States that keep {self.keep} and {other.keep} rows do not add up; give both one `keep`.")
        moments = self.moments + other.moments
        keys, groups = self.keys + other.keys, self.groups + other.groups
        rows = torch.cat([part.rows for part in (self, other) if len(part.rows)] or [self.rows])
        order = sorted(range(len(keys)), key=keys.__getitem__)[: self.keep]
        chosen = rows[torch.tensor(order, dtype=torch.long)]
        return Features(self.keep, moments, tuple(keys[k] for k in order), tuple(groups[k] for k in order), chosen)

    def __len__(self) -> int:
        return self.moments.count

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The groups, each once, ascending."""
        return tuple(sorted(set(self.groups)))

    def thinned(self, keep: int) -> Features:
        """Return the state with at most `keep` rows, and the moments of all pictures as before."""
        if len(self.rows) <= keep:
            return self
        return Features(keep, self.moments, self.keys[:keep], self.groups[:keep], self.rows[:keep])

    def weights(self, counts: Tensor, kinds: Sequence[str]) -> Tensor:
        """Return weights of the rows (resamples, kept) from how often each of `kinds` was drawn (resamples, kinds)."""
        place = {kind: k for k, kind in enumerate(kinds)}
        return counts[:, torch.tensor([place[group] for group in self.groups], dtype=torch.long)]


@dataclass(frozen=True)
class Scores:
    """Scores of pictures by prompt. The order in which they come changes no bit of the mean.

    Attributes:
        values: prompt -> the scores of its pictures.
    """

    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def add(self, prompts: Iterable[str], scores: Tensor | Sequence[float]) -> Scores:
        """Return the state with the scores of further pictures.

        Raises:
            NonFiniteError: for NaN or infinity.
        """
        new: dict[str, tuple[float, ...]] = {}
        for prompt, score in zip(prompts, torch.as_tensor(scores).tolist(), strict=True):
            if not math.isfinite(score):
                raise NonFiniteError(f"The score of a picture of {prompt!r} is {score}.")
            new[prompt] = (*new.get(prompt, ()), float(score))
        return self + Scores(new)

    def __add__(self, other: Scores) -> Scores:
        both = dict(self.values)
        for prompt, scores in other.values.items():
            both[prompt] = (*both.get(prompt, ()), *scores)
        return Scores(both)

    def __len__(self) -> int:
        return sum(map(len, self.values.values()))

    @property
    def by_prompt(self) -> dict[str, float]:
        """Prompt -> the mean of its pictures."""
        return {prompt: math.fsum(scores) / len(scores) for prompt, scores in sorted(self.values.items())}

    @property
    def mean(self) -> float:
        """The mean over prompts.

        Raises:
            InputError: when there are none.
        """
        if not self.values:
            raise InputError("There are no scores; add some first.")
        return math.fsum(self.by_prompt.values()) / len(self.values)


def digest(text: str) -> str:
    """Return a hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def same_width(one: int, other: int) -> None:
    """Raise InputError unless two sets have features of one extractor."""
    if one != other:
        raise InputError(f"{one} and {other} features per picture do not compare; use one extractor for both.")
