"""Guidance: which predictions a step asks for, and how they are combined.

A guidance is called with the sample and the step and is a generator: it yields the branches whose predictions it wants,
receives them in the same order, and returns the combination. A later branch may depend on an earlier prediction, since
a guidance may yield more than once; several branches of one yield may be run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import InputError, check_number, is_number
from .table import Step


@dataclass(frozen=True)
class Branch:
    """One prediction that a guidance asks for.

    Attributes:
        condition: name of the conditioning, known to the denoiser ("positive", "negative", ...).
        sample: replaces the sample for this branch, or None.
        patch: makes the context in which the network is called (a perturbed attention, say), or None.
    """

    condition: str = "positive"
    sample: torch.Tensor | None = None
    patch: Callable[[], AbstractContextManager[Any]] | None = None


Branches = tuple[Branch, ...]
Predictions = tuple[torch.Tensor, ...]
Talk = Generator[Branches, Predictions, torch.Tensor]
Guidance = Callable[[torch.Tensor, Step], Talk]

POSITIVE, NEGATIVE = Branch("positive"), Branch("negative")
PICTURE, NOTHING = Branch("picture"), Branch("nothing")
"""The negative prompt with the picture that is edited, and without it."""


def guided(guidance: Guidance, x: torch.Tensor, step: Step, predict: Callable[[Branches], Predictions]) -> torch.Tensor:
    """Hold the conversation between a guidance and the network and return its result; `predict` answers requests."""
    talk = guidance(x, step)
    try:
        wanted = next(talk)
        while True:
            wanted = talk.send(tuple(predict(wanted)))
    except StopIteration as end:
        return end.value


def alone(x: torch.Tensor, step: Step) -> Talk:
    """No guidance: the prediction of the positive conditioning."""
    (prediction,) = yield (POSITIVE,)
    return prediction


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance: Ho & Salimans 2022 (2207.12598), with eps = negative + scale * (positive - negative).

    Attributes:
        scale: 1 or less switches guidance off; a tensor that broadcasts against the prediction gives every image or
            frame its own.
        rescale: share of the rescaled prediction, see `rescaled`.
        members: names of several positive conditions and their weights, numbers or tensors that broadcast against the
            prediction: eps = negative + scale * sum of weight * (member - negative), Liu et al. 2022 (2206.01714),
            eq. 11. Empty for the one positive condition.
    """

    scale: float | torch.Tensor = 7.5
    rescale: float = 0.0
    members: tuple[tuple[str, float | torch.Tensor], ...] = ()

    @property
    def active(self) -> bool:
        """Whether the negative branch is asked at all; a tensor scale always asks."""
        return isinstance(self.scale, torch.Tensor) or self.scale > 1.0

    def __call__(self, x: torch.Tensor, step: Step) -> Talk:
        if not self.active:
            return (yield from alone(x, step))
        if self.members:
            negative, *found = yield (NEGATIVE, *(Branch(name) for name, _ in self.members))
            shares = (weight * (one - negative) for (_, weight), one in zip(self.members, found, strict=True))
            positive = negative + sum(shares)
        else:
            negative, positive = yield (NEGATIVE, POSITIVE)
        prediction = negative + self.scale * (positive - negative)
        return rescaled(prediction, positive, self.rescale) if self.rescale else prediction


@dataclass(frozen=True)
class DualCFG:
    """Guidance by a prompt and by a picture: Brooks et al. 2023 (2211.09800), eq. 3.

    nothing + picture_scale * (picture - nothing) + scale * (positive - picture)

    Attributes:
        scale: weight of the prompt.
        picture_scale: weight of the picture.
        rescale: share of the rescaled prediction, see `rescaled`.
    """

    scale: float = 7.5
    picture_scale: float = 1.5
    rescale: float = 0.0

    def __call__(self, x: torch.Tensor, step: Step) -> Talk:
        positive, picture, nothing = yield (POSITIVE, PICTURE, NOTHING)
        prediction = nothing + self.scale * (positive - picture) + self.picture_scale * (picture - nothing)
        return rescaled(prediction, positive, self.rescale) if self.rescale else prediction


@dataclass(frozen=True)
class Within:
    """A guidance in an interval of noise levels; outside it the positive prediction alone is asked, and taken.

    Source: Kynkäänniemi et al. 2024 (2404.07724).

    Attributes:
        guidance: what guides inside.
        low, high: noise levels sigma / alpha; inside is low < level <= high.

    Raises:
        InputError: when nothing lies between the two.
    """

    guidance: Guidance
    low: float
    high: float

    def __post_init__(self) -> None:
        check_number("low", self.low, low=0.0)
        if not is_number(self.high) and self.high != float("inf"):
            raise InputError(f"`high` is {self.high!r}; it must be a number, or infinity.")
        if self.high <= self.low:
            raise InputError(f"`high` is {self.high}; it must be above `low`, which is {self.low}.")

    def holds(self, step: Step) -> bool:
        """Tell whether a step is inside."""
        return self.low < step.level.ratio <= self.high

    def __call__(self, x: torch.Tensor, step: Step) -> Talk:
        return (self.guidance if self.holds(step) else alone)(x, step)


def rescaled(prediction: torch.Tensor, positive: torch.Tensor, share: float) -> torch.Tensor:
    """Pull the deviation of each guided sample to that of the positive one: Lin et al. 2023 (2305.08891), eq. 14-16."""
    axes = list(range(1, prediction.ndim))
    factor = positive.std(dim=axes, keepdim=True) / prediction.std(dim=axes, keepdim=True)
    return share * (prediction * factor) + (1 - share) * prediction
