"""`--grid`: every combination of some values of some options."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import InputError, did_you_mean
from .request import Request, flag

KINDS: dict[str, type] = {
    "control_scale": float,
    "guidance_scale": float,
    "negative_prompt": str,
    "prompt": str,
    "scheduler": str,
    "seed": int,
    "steps": int,
    "strength": float,
}
"""Option that can be an axis -> the type of its values."""
LIMIT = 3
"""Axes that a sheet can show: columns, rows, and blocks below each other."""
EXAMPLE = "'guidance_scale=3,5,7 x scheduler=euler,ddim x seed=1,2'"


@dataclass(frozen=True)
class Axis:
    """An option and its values, as they are and as they were written."""

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]


def parse(text: str) -> list[Axis]:
    """Return the axes of `name=value,value x name=value,value`; values with commas stand in double quotes.

    Raises:
        InputError: for another form, an unknown name (with the nearest), a value of another type, or too many axes.
    """
    parts = re.split(r"""\s+x\s+(?=[\w-]+\s*=)(?=(?:[^"]*"[^"]*")*[^"]*$)""", text.strip())
    axes = [parse_axis(part) for part in parts]
    names = [axis.name for axis in axes]
    if len(axes) > LIMIT:
        raise InputError(f"--grid has {len(axes)} axes ({', '.join(names)}); a sheet can show {LIMIT}.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"--grid has {twice[0]} twice; put all its values behind one name.")
    return axes


def parse_axis(text: str) -> Axis:
    """Return the axis of `name=value,value`."""
    written, equals, rest = text.partition("=")
    name = written.strip().lstrip("-").replace("-", "_")
    labels = [value.strip() for value in re.findall(r'\s*"[^"]*"\s*|[^,]+|(?<=,)(?=,|$)|^$', rest)]
    labels = [label[1:-1] if label[:1] == label[-1:] == '"' and len(label) > 1 else label for label in labels]
    if not equals or not all(labels):
        raise InputError(f"--grid has {text!r}, which is no name=value,value; an example: {EXAMPLE}.")
    if name not in KINDS:
        raise InputError(f"--grid has the axis {written.strip()!r}{did_you_mean(name, KINDS)}")
    if len(set(labels)) < len(labels):
        raise InputError(f"--grid has a value of {name} twice: {rest}.")
    return Axis(name, tuple(value_of(name, label) for label in labels), tuple(labels))


def value_of(name: str, label: str) -> Any:
    """Return the value that was written, in the option's type.

    Raises:
        InputError: when it is of another type.
    """
    try:
        return KINDS[name](label)
    except ValueError:
        what = "a whole number" if KINDS[name] is int else "a number"
        raise InputError(f"--grid has {name}={label}; it must be {what}.") from None


def cells(request: Request, axes: Sequence[Axis]) -> list[Request]:
    """Return one request per combination, the last axis fastest; the request itself when there are no axes.

    Raises:
        InputError: when an axis was given as an option too, or several pictures per combination were asked.
    """
    for axis in axes:
        if getattr(request, axis.name) is not None:
            raise InputError(f"{flag(axis.name)} was given, and {axis.name} is an axis of --grid; leave one out.")
    if axes and request.num_images > 1:
        raise InputError("--num-images does not go with --grid; give an axis seed=1,2,3 instead.")
    combined = itertools.product(*(axis.values for axis in axes))
    return [replace(request, **dict(zip((axis.name for axis in axes), values, strict=True))) for values in combined]


def summary(axes: Sequence[Axis]) -> str:
    """Return how many pictures a grid gives, as text."""
    count = math.prod(len(axis.values) for axis in axes)
    return f"Grid of {count} pictures: {' x '.join(f'{axis.name} ({len(axis.values)})' for axis in axes)}"


def endings(axes: Sequence[Axis]) -> list[str]:
    """Return a word per combination for the names of files, made of the values."""
    words = [[re.sub(r"[^\w.+-]+", "-", label)[:24].strip("-.") or str(k) for k, label in enumerate(axis.labels, 1)]
             for axis in axes]  # fmt: skip
    return ["-".join(combined) for combined in itertools.product(*words)]
