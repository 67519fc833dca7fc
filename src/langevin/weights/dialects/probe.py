"""What an adapter file is, told from names, shapes and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.weights_io import Entry
from ..found import Found
from . import peft
from .families import family
from .grammar import ALGORITHM_NAMES, ALPHA, ANY
from .naming import Shape, lacking, rank
from .parts import ALGORITHMS
from .words import Word, dialect_of, understood

LARGE = 0.5
"""The share of a file's names that must be an adapter's, so that a network with one stray name is not taken for one."""


def probe(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say what a LoRA, LoCon, LoHa, LoKr, DoRA, OFT or difference file is, or None when it is none of these."""
    found = {name: understood(name) for name in entries}
    others = {name: what for name, what in found.items() if isinstance(what, str)}
    names = {name: word for name, word in found.items() if isinstance(word, Word)}
    if len(names) + len(others) < LARGE * len(entries) or not entries:
        return None
    shapes = {name: tuple(entries[name].shape) for name in names}
    layers = _layers(names, shapes)
    if not layers and not others:
        return None
    kinds = sorted({ALGORITHM_NAMES[kind] for kind, _ in layers.values()})
    if any("magnitude" in parts for _, parts in layers.values()):
        kinds.append("DoRA")
    unsupported = sorted(set(others.values()))
    dialect = dialect_of(names.values()) if names else None
    told = family(shapes, names.values())
    details: dict[str, Any] = {
        "algorithms": [*kinds, *unsupported],
        "layers": len(layers),
        "rank": _span([r for kind, parts in layers.values() if (r := rank(kind, parts)) is not None]),
        "alpha": _alpha(names, metadata),
        "components": sorted({word.component or "unet" for word in names.values()}),
        "targets": sorted({_leaf(word) for word in names.values()}),
        "not supported": unsupported,
    }
    reasons = [f"{len(names)} of {len(entries)} names are those of an adapter, spelt as by {dialect}"] if names else []
    reasons += [f"{name} belongs to {what}" for name, what in list(others.items())[:1]]
    reasons += [told[1]] if told else []
    halves = tuple(f"{layer} lacks {', '.join(gone)}" for layer, gone in _incomplete(layers).items())
    return Found("lora", told[0] if told else None, dialect, details, tuple(reasons), incomplete=halves)


def _layers(names: Mapping[str, Word], shapes: Mapping[str, Shape]) -> dict[str, tuple[str, dict[str, Shape]]]:
    """Return layer as the file calls it -> (algorithm, shapes of its parts)."""
    kinds: dict[str, str] = {}
    parts: dict[str, dict[str, Shape]] = {}
    for name, word in names.items():
        layer = f"{word.prefix}{word.layer}"
        parts.setdefault(layer, {})
        if word.part.part != ALPHA:
            parts[layer][word.part.part] = shapes[name]
        if word.part.algorithm != ANY:
            kinds[layer] = word.part.algorithm
    return {layer: (kind, parts[layer]) for layer, kind in kinds.items() if set(parts[layer]) <= {*ALGORITHMS[kind]}}


def _incomplete(layers: Mapping[str, tuple[str, dict[str, Shape]]]) -> dict[str, list[str]]:
    """Return layer -> the parts it lacks, for those that lack any."""
    gone = {layer: sorted(lacking(kind, frozenset(parts))) for layer, (kind, parts) in layers.items()}
    return {layer: names for layer, names in gone.items() if names}


def _leaf(word: Word) -> str:
    """Return the last step of a layer's name, with the one before it where that is a number."""
    steps = word.layer.replace("_", ".").split(".") if word.flat else word.layer.split(".")
    if word.flat:
        known = ("to.out.0", "to.q", "to.k", "to.v", "q.proj", "k.proj", "v.proj", "out.proj", "proj.in", "proj.out")
        dotted = ".".join(steps)
        return next((leaf.replace(".", "_", 1) for leaf in known if dotted.endswith(leaf)), steps[-1])
    return ".".join(steps[-2:]) if steps[-1].isdigit() else steps[-1]


def _span(numbers: list[int]) -> str | int | None:
    """Return the only number, or the smallest and the largest."""
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    return low if low == high else f"{low} to {high}"


def _alpha(names: Mapping[str, Word], metadata: Mapping[str, str]) -> str | float | None:
    """Return the alpha that the metadata tell, or that every layer has its own in the file."""
    if "ss_network_alpha" in metadata:
        return metadata["ss_network_alpha"]
    configs = peft.configurations(metadata)
    told = sorted({config["lora_alpha"] for config in configs.values() if "lora_alpha" in config})
    if told:
        return _span(told)
    return "one per layer" if any(word.part.part == ALPHA for word in names.values()) else "equal to the rank"
