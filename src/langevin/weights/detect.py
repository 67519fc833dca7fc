"""What a weight file is, told from names, shapes and metadata."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache

from ..core.errors import WeightsError
from ..core.report import some
from ..core.weights_io import Entry
from .family import Facts, Family
from .found import Found
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


SHORT = {
    "stable_diffusion": "sd1",
    "stable_diffusion_2": "sd2",
    "stable_diffusion_xl": "sdxl",
    "stable_diffusion_xl_refiner": "sdxl-refiner",
    "autoencoder_kl": None,
}
"""Family of a layout -> the name that a look at a file gives it."""


def probe(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say what a file in its authors' layout is, or None; a detector as `weights.found` describes it."""
    shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
    header = Header(shapes, {name: entry.dtype for name, entry in entries.items()}, metadata)
    found = next(_recognised(header), None)
    if found is None:
        return None
    family, facts = found
    held = [place.component for place in family.places if place.prefix_in(header) is not None]
    kind = "checkpoint" if len(held) > 1 else {"vae": "vae", "unet": "unet"}.get(held[0], facts.kind)
    details = {
        "for": facts.kind,
        "holds": held,
        "predicts": facts.prediction_type,
        "zero terminal SNR": "yes" if facts.zero_snr else None,
        "pixels": facts.image_size,
        "pipeline": facts.pipeline,
        "uncertain": list(facts.doubts) or None,
    }
    known = {name: value for name, value in details.items() if value is not None}
    return Found(kind, SHORT.get(facts.family, facts.family), "original", known, facts.reasons)


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
