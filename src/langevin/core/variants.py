"""Weight files by their names: which variant and kind they are, and which of them a load takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .report import some

SAFETENSORS, PICKLE = "safetensors", "bin"
STEMS = "diffusion_pytorch_model|pytorch_model|model"
"""What the documented formats call weight files, of this library and of transformers."""
_VARIANT, _SHARD, _KIND = r"[\w.-]+?", r"-\d{5}-of-\d{5}", rf"(?P<kind>{SAFETENSORS}|{PICKLE})"
PATTERNS = (
    re.compile(rf"(?:{STEMS})(?:\.(?P<variant>{_VARIANT}))?(?:{_SHARD})?\.{_KIND}"),
    re.compile(rf"(?:{STEMS}){_SHARD}\.(?P<variant>{_VARIANT})\.{_KIND}"),
    re.compile(rf"(?:{STEMS})\.{_KIND}\.index(?:\.(?P<variant>{_VARIANT}))?\.json"),
    re.compile(rf"(?:{STEMS})\.(?P<variant>{_VARIANT})\.{_KIND}\.index\.json"),
)
"""Names of a file or shard, of a shard in the older spelling, and of a shard index in both."""
KINDS: dict[bool | None, tuple[str, ...]] = {
    None: (SAFETENSORS, PICKLE),
    True: (SAFETENSORS,),
    False: (PICKLE,),
}
"""Kinds of weight files by `use_safetensors`, the preferred one first."""


class Weights(NamedTuple):
    """A set of weight files: its variant (None for the plain files) and its kind, "safetensors" or "bin"."""

    variant: str | None
    kind: str


def weights_of(name: str) -> Weights | None:
    """Return which weights a file belongs to, as the file, a shard or the index; None for any other file."""
    matches = (pattern.fullmatch(name) for pattern in PATTERNS)
    return next((Weights(found["variant"], found["kind"]) for found in matches if found), None)


def weights_in(names: Iterable[str]) -> set[Weights]:
    """Return which weights are among file names."""
    return {found for found in map(weights_of, names) if found}


def pick(found: Iterable[Weights], variant: str | None, use_safetensors: bool | None) -> Weights | None:
    """Return the weights to load: the variant, or the plain files; without a variant also the only one there is.

    None when nothing fits. Safetensors come before pickles.
    """
    fitting = {weights for kind in KINDS[use_safetensors] for weights in found if weights.kind == kind}
    others = {weights.variant for weights in fitting}
    if variant is None and None not in others and len(others) == 1:
        (variant,) = others
    choices = (Weights(variant, kind) for kind in KINDS[use_safetensors])
    return next((weights for weights in choices if weights in fitting), None)


def members(names: Iterable[str], chosen: Weights | None) -> list[str]:
    """Return the files of the chosen weights: the whole file, or else its shards and their index."""
    files = [name for name in names if chosen is not None and weights_of(name) == chosen]
    return [name for name in files if not is_part(name)] or files


def is_part(name: str) -> bool:
    """Tell whether a weight file is a shard or an index."""
    return name.endswith(".json") or re.search(_SHARD, name) is not None


def advice(found: Iterable[Weights], names: Sequence[str], *, variant: str | None, use_safetensors: bool | None) -> str:
    """Return what to pass when none of the weights that were found fits, and which files there are."""
    kinds = KINDS[use_safetensors]
    others = {weights.variant for weights in found if weights.kind in kinds} - {variant}
    named = [f"variant={name!r}" for name in sorted(filter(None, others))]
    if variant is not None and None in others:
        cure = "the plain weights are there: leave `variant` out"
    elif named:
        cure = ("pass " if len(named) == 1 else "there are several variants: pass ") + " or ".join(named)
    elif any(name.endswith(tuple(KINDS[None])) for name in names):
        foreign = not list(found) or use_safetensors is None
        cure = "they are of another layout: see from_single_file" if foreign else "change `use_safetensors`"
    else:
        cure = "the folder holds no weights of a model"
    return f"{cure}. Files there: {some(sorted(names))}"
