"""Errors that name the cause, the cure and the nearest valid option."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class LangevinError(Exception):
    """Base of every error raised on purpose by this library."""


class ConfigError(LangevinError, ValueError):
    """A configuration or option is unknown, missing or contradictory."""


class InputError(LangevinError, ValueError):
    """An argument of a call has a wrong value, shape or type."""


class WeightsError(LangevinError, OSError):
    """Weights are missing, damaged, or do not fit the model."""


class MissingDependencyError(LangevinError, ImportError):
    """An optional package is needed and not installed."""


class NonFiniteError(LangevinError, FloatingPointError):
    """A tensor holds NaN or infinity; `module` and `step` say where it arose."""

    def __init__(self, message: str, *, module: str | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.module = module
        self.step = step


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option whose spelling is closest to `name`, or None when nothing is close."""
    by_fold = {str(option).casefold(): str(option) for option in options}
    close = difflib.get_close_matches(str(name).casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[close[0]] if close else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest option, or the list of all of them."""
    options = sorted(str(option) for option in options)
    close = nearest(name, options)
    if close is not None:
        return f"; did you mean {close!r}?"
    return f"; valid: {', '.join(options)}." if options else "; no option is accepted here."


def check_choice(what: str, value: object, options: Iterable[object]) -> None:
    """Raise InputError unless `value` is one of `options`."""
    options = list(options)
    if value not in options:
        raise InputError(f"{what} is {value!r}{did_you_mean(str(value), map(str, options))}")


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for the names in `given` that are not in `known`; `what` names the receiver."""
    known = set(known)
    unknown = [name for name in given if name not in known]
    if unknown:
        hints = "; ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown)
        raise ConfigError(f"{what} does not accept {hints}")


def is_number(value: Any) -> bool:
    """Tell whether `value` is a finite number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_number(name: str, value: Any, *, low: float = float("-inf"), high: float = float("inf")) -> None:
    """Raise InputError unless `value` is a finite number within [low, high]."""
    if not is_number(value):
        raise InputError(f"`{name}` is {value!r}; it must be a finite number.")
    if not low <= float(value) <= high:
        raise InputError(f"`{name}` is {value}; it must be between {low} and {high}.")


def check_count(name: str, value: Any, *, low: int = 1) -> None:
    """Raise InputError unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise InputError(f"`{name}` is {value!r}; it must be a whole number of at least {low}.")
