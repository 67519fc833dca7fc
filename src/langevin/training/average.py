"""The exponential moving average of trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from .shares import share_of


@dataclass(frozen=True)
class Decay:
    """How much of the average is kept at a step.

    With `warmup` 1 - (1 + step / inv_gamma)^-power, else (1 + step) / (10 + step); never more than `highest` nor less
    than `lowest`, and 0 until `begin`.
    """

    highest: float = 0.9999
    lowest: float = 0.0
    begin: int = 0
    warmup: bool = False
    inv_gamma: float = 1.0
    power: float = 2 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest < 1:
            raise InputError(
                f"The average keeps between {self.lowest} and {self.highest}; it must be 0 <= lowest <= highest < 1."
            )

    def at(self, updates: int) -> float:
        """Return what is kept at the update after `updates` others."""
        step = max(0, updates - self.begin)
        if step == 0:
            return 0.0
        rising = 1 - (1 + step / self.inv_gamma) ** -self.power if self.warmup else (1 + step) / (10 + step)
        return max(min(rising, self.highest), self.lowest)


class Average:
    """A moving average of parameters, in float32 or their own type if that is wider.

    Attributes:
        parameters: those that are averaged.
        values: their averages.
        updates: how often it was updated.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: Decay | None = None) -> None:
        self.parameters = list(parameters)
        self.decay = decay or Decay()
        wide = [torch.promote_types(parameter.dtype, torch.float32) for parameter in self.parameters]
        self.values = [
            parameter.detach().to(dtype, copy=True) for parameter, dtype in zip(self.parameters, wide, strict=True)
        ]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters."""
        kept = self.decay.at(self.updates)
        self.updates += 1
        present = [p.detach().to(value.dtype) for p, value in zip(self.parameters, self.values, strict=True)]
        torch._foreach_lerp_(self.values, present, 1 - kept)

    @torch.no_grad()
    def put(self, values: Iterable[Tensor]) -> None:
        """Write values into the parameters."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the parameters are their averages."""
        held = [parameter.detach().clone() for parameter in self.parameters]
        self.put(self.values)
        try:
            yield
        finally:
            self.put(held)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        values = {f"values.{k}": value for k, value in enumerate(self.values)}
        return {**values, "updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what a checkpoint kept."""
        self.updates = int(state["updates"])
        for k, value in enumerate(self.values):
            value.copy_(share_of(state[f"values.{k}"], value))
