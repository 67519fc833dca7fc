"""What a weight file is, told from names, shapes and metadata."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache

from ..core.errors import WeightsError
from ..core.report import some
from .family import Facts, Family
from .header import Header
from .layouts import MODULES


@cache
def families() -> tuple[Family, ...]:
    """Return every family that files are recognised by, in the order of asking."""
    package = __name__.rpartition(".")[0]
    modules = (importlib.import_module(f"{package}.layouts.{name}") for name in MODULES)
    return tuple(family for module in modules for family in module.FAMILIES)


def detect(header: Header) -> Facts | None:
    """Return what a file is, or None when no family knows it."""
    return next((facts for _, facts in _recognised(header)), None)


def recognise(header: Header, what: str) -> tuple[Family, Facts]:
    """Return the family of a file and what the file is.

    Args:
        what: the file, for messages.
    Raises:
        WeightsError: when no family knows it, with what it holds.
    """
    found = next(_recognised(header), None)
    if found is None:
        known = ", ".join(family.name for family in families())
        names = some(sorted({name.split(".")[0] for name in header.shapes}))
        raise WeightsError(f"{what} is in no layout that is known here ({known}); its names begin with: {names}")
    return found


def _recognised(header: Header) -> Iterator[tuple[Family, Facts]]:
    for family in families():
        facts = family.recognise(header)
        if facts is not None:
            yield family, facts
