"""Amounts of randomness: one number for a whole run, one per step, or a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...core.errors import InputError
from ..process import Level

Strength = float | Sequence[float] | Callable[[int, Level], float]
"""A number, a sequence with one number per step, or a function of (number of the step, level before it)."""


def strength(name: str, value: Strength, index: int | None, count: int, level: Level) -> float:
    """Return the amount `value` for step `index` of `count`, which starts at `level`.

    Raises:
        InputError: when a sequence does not hold one number per step, or for what is no number, negative or not finite.
    """
    if callable(value) or (isinstance(value, Sequence) and not isinstance(value, str)):
        if index is None:
            raise InputError(f"`{name}` differs from step to step, but this step has no number; pass a single number.")
        if not callable(value) and len(value) != count:
            raise InputError(f"`{name}` holds {len(value)} numbers, but the run has {count} steps; give one per step.")
        value = value(index, level) if callable(value) else value[index]
    if isinstance(value, str) or not (math.isfinite(value) and value >= 0):
        where = 0 if index is None else index
        raise InputError(f"`{name}` is {value!r} at step {where}; it must be a number that is not negative.")
    return float(value)
