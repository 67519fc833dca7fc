"""The names of tensors in adapter files, taken apart: component, layer and what the tensor is, of every dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ...core.errors import WeightsError
from . import peft
from .diffusers import DIFFUSERS, PROCESSORS
from .grammar import ALGORITHM_NAMES, ALPHA, REFUSED, Dialect, Part, match
from .kohya import KOHYA

DIALECTS: Mapping[str, Dialect] = {each.name: each for each in (DIFFUSERS, PROCESSORS, peft.PEFT, KOHYA)}
ENDS: Mapping[str, Part] = {end: part for each in DIALECTS.values() for end, part in each.ends.items()}
OWNERS: Mapping[str, str] = {end: each.name for each in reversed(list(DIALECTS.values())) for end in each.ends}
"""End -> the dialect that it speaks for."""
ORIGINAL_UNET = ("model.diffusion_model.", "diffusion_model.")
PREFIXES: tuple[tuple[str, str, bool], ...] = tuple(
    sorted(
        {
            *(
                (prefix, component, each.flat)
                for each in DIALECTS.values()
                for component, prefixes in each.prefixes.items()
                for prefix in prefixes
                if prefix
            ),
            *((prefix, "unet", False) for prefix in ORIGINAL_UNET),
        },
        key=lambda row: -len(row[0]),
    )
)
"""(prefix, component, whether the layer's name behind it is flat), the longest first."""


class Word(NamedTuple):
    """The name of one tensor, taken apart.

    Attributes:
        key: the whole name.
        component: None where the name begins with the layer.
        layer: the layer's name as the file spells it, without prefix.
        flat: whether it is spelt without dots.
        end, part: what stands behind it, and what that means.
        dialect: whose end that is.
        prefix: what stands before it.
    """

    key: str
    component: str | None
    layer: str
    flat: bool
    end: str
    part: Part
    dialect: str
    prefix: str


def take_apart(name: str) -> Word | None:
    """Take the name of a tensor apart, or return None when no dialect knows what stands at its end.

    Raises:
        WeightsError: for an algorithm that is not supported.
    """
    word = understood(name)
    if isinstance(word, str):
        known = ", ".join([*ALGORITHM_NAMES.values(), "DoRA"])
        raise WeightsError(f"{name!r} belongs to {word}, which is not supported; supported: {known}.")
    return word


def understood(name: str) -> Word | str | None:
    """Return the name of a tensor taken apart, or the algorithm that it belongs to and that is not supported."""
    found = match(name, ENDS)
    if found is None:
        other = match(name, REFUSED)
        return None if other is None else REFUSED[other[2]]
    stem, end, key = found
    part, (component, layer, flat, prefix) = ENDS[key], placed(stem)
    if part.leaf:
        layer = f"{layer.removesuffix('.processor')}.{part.leaf}"
    return Word(name, component, layer, flat, end, part, OWNERS[key], prefix)


def placed(stem: str) -> tuple[str | None, str, bool, str]:
    """Split what stands before the end of a name into component, layer, whether that is flat, and the prefix."""
    bare = stem.removeprefix(peft.WRAPPER)
    for prefix, component, flat in PREFIXES:
        if bare.startswith(prefix):
            layer = bare.removeprefix(prefix).removeprefix(peft.WRAPPER)
            return component, layer, flat, stem.removesuffix(layer)
    return None, bare, False, stem.removesuffix(bare)


def dialect_of(words: Iterable[Word]) -> str:
    """Return the dialect that most names of a file are spelt in."""
    owners = [word.dialect for word in words if word.part.part != ALPHA]
    return peft.most_common(owners) if owners else DIFFUSERS.name
