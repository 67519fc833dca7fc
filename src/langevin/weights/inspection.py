"""What a weight file is: the answer of an inspection, and how a file gets it.

Each way of recognising a file is a probe (see `found`); the first that knows the file answers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..core.errors import LangevinError
from ..core.report import some
from .contents import SUFFIXES, Contents, look
from .dialects import custom_diffusion, ip_adapter, textual_inversion
from .dialects import probe as adapters
from .fit import Fit
from .found import Found, Probe
from .known import probe_network, probe_original
from .printing import METADATA, print_out

PROBES: Mapping[Probe, str] = {
    ip_adapter.probe: "an IP-Adapter",
    custom_diffusion.probe: "weights of Custom Diffusion",
    adapters.probe: "a LoRA",
    textual_inversion.probe: "a textual inversion",
    probe_original: "a network",
    probe_network: "a network",
}
"""Probe -> what it knows. They are asked in this order; what is small and special comes first."""


@dataclass(frozen=True)
class Inspection:
    """What a weight file or folder is.

    Attributes:
        path: as it was given.
        kind: "checkpoint", "unet", "vae", "lora", "textual inversion", "pipeline folder" ..., or "unknown".
        family: short name of the model family, "sd1", "sd2", "sdxl" ..., or None where nothing tells.
        dialect: how the names are spelt, or None.
        format: how the file is written, or None for a folder and for what holds no weights.
        size: bytes on disk.
        tensors, parameters: how many.
        dtypes: name of a type -> number of parameters that have it.
        details: further facts by name.
        metadata: the strings in the file.
        reasons: what the answer rests on.
        doubts: what the file does not settle.
        damage: what is wrong with it; empty when nothing was found.
        parts: name -> the same for the components of a folder.
        fit: how it goes with the given model, or None.
    """

    path: str
    kind: str
    family: str | None = None
    dialect: str | None = None
    format: str | None = None
    size: int = 0
    tensors: int = 0
    parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    parts: Mapping[str, Inspection] = field(default_factory=dict)
    fit: Fit | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong: no damage, here and in the parts, and a fit where one was asked for."""
        return not self.damage and (self.fit is None or self.fit.fits) and all(p.ok for p in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("parts", "fit")}
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        own |= {name: dict(value) for name, value in own.items() if isinstance(value, Mapping)}
        own["parts"] = {name: part.as_dict() for name, part in self.parts.items()}
        own["fit"] = None if self.fit is None else self.fit.as_dict()
        return own | {"ok": self.ok}

    def __str__(self) -> str:
        return print_out(self)


def of_file(path: Path) -> Inspection:
    """Return what a file is."""
    return described(path, look(path))


def recognised(contents: Contents) -> tuple[Found | None, list[str]]:
    """Return what the first probe that knows a file's names says of it, and the probes that shapes put at a loss."""
    lost = []
    for probe, what in PROBES.items() if contents.entries else ():
        try:
            found = probe(contents.entries, contents.metadata)
        except (LangevinError, LookupError, ValueError, TypeError, ArithmeticError):
            lost.append(f"Some names are as in {what}, with tensors of shapes that make no sense there.")
            continue
        if found is not None:
            return found, lost
    return None, lost


def described(path: Path, contents: Contents) -> Inspection:
    """Return the answer for a file, or the files of one network, from what a probe found."""
    known, lost = recognised(contents)
    found, entries = known or _unknown(contents), contents.entries
    details = dict(found.details)
    damage = (f"It is incomplete: {some(found.incomplete, '; ')}.",) if found.incomplete else ()
    if found.kind == "textual inversion" and not details.get("words"):
        details["words"] = [f"{path.stem} (the file's name)"]
    if contents.beside:
        others = {name: what for name, what in contents.beside.items() if name and name not in METADATA}
        details["beside the weights"] = [f"{name}: {what}" for name, what in others.items()]
    types: Counter[str] = Counter()
    for entry in entries.values():
        types[str(entry.dtype).removeprefix("torch.")] += prod(entry.shape)
    return Inspection(
        path=os.fspath(path),
        kind=found.kind,
        family=found.family,
        dialect=found.dialect,
        format=contents.format,
        size=contents.size,
        tensors=len(entries),
        parameters=sum(types.values()),
        dtypes=dict(types.most_common()),
        details=present(details),
        metadata=dict(contents.metadata),
        reasons=tuple(map(_as_sentence, found.reasons)),
        doubts=(*lost, *found.doubts),
        damage=(*contents.damage, *damage),
    )


def _as_sentence(text: str) -> str:
    """Return a text with a capital, unless it begins with a name from the file, and with a full stop."""
    first = text.split(" ")[0]
    start = first if any(sign in first for sign in "._`/") else first.capitalize() if first.islower() else first
    return f"{start}{text.removeprefix(first).rstrip('.')}."


def _unknown(contents: Contents) -> Found:
    """Return what is to be said of a file that no probe knows."""
    if contents.format is None:
        return Found("no weights")
    if not contents.entries:
        return Found("empty" if contents.format in SUFFIXES else f"{contents.format} file")
    starts = Counter(name.split(".")[0] for name in contents.entries).most_common()
    names = some([f"{name}.* ({n})" for name, n in starts])
    return Found("unknown", details={"names": names}, doubts=("Nothing here knows names like these.",))


def present(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details that say something."""
    return {name: value for name, value in details.items() if value not in (None, [], {}, "")}
