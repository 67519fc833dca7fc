"""What a weight file is, told from names, shapes and metadata."""

from __future__ import annotations

from ..core.errors import WeightsError
from ..core.report import some
from .family import Facts, Family
from .header import Header
from .layouts import controls, keras, stable_diffusion, tiny, video

FAMILIES: tuple[Family, ...] = (
    *controls.FAMILIES,
    *video.FAMILIES,
    *tiny.FAMILIES,
    *keras.FAMILIES,
    *stable_diffusion.FAMILIES,
)
"""Asked in this order; more special ones come first."""


def detect(header: Header) -> tuple[Family, Facts] | None:
    """Return the family of a file and what the file is, or None when no family knows it."""
    answers = ((family, family.recognise(header)) for family in FAMILIES)
    return next(((family, facts) for family, facts in answers if facts is not None), None)


def recognise(header: Header, what: str) -> tuple[Family, Facts]:
    """Return the family of a file and what the file is.

    Args:
        what: the file, for messages.
    Raises:
        WeightsError: when no family knows it, with what it holds.
    """
    found = detect(header)
    if found is None:
        known = ", ".join(family.name for family in FAMILIES)
        names = some(sorted({name.split(".")[0] for name in header.shapes}))
        raise WeightsError(f"{what} is in no layout that is known here ({known}); its names begin with: {names}")
    return found
