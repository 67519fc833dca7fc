"""Which models an adapter is made for, told by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..found import CONTEXTS, FAMILIES
from .naming import Shape, extent, lacking
from .words import Word

FOREIGN: Mapping[str, tuple[str, ...]] = {
    "flux": ("double_blocks", "single_blocks", "single_transformer_blocks"),
    "sd3": ("joint_blocks", "joint_attn"),
    "wan": ("blocks.0.cross_attn", "blocks_0_cross_attn"),
    "stable-cascade": ("prior_unet",),
}
"""Families whose networks have other layers than a UNet -> words that their files' names hold."""
SPOKEN = {**FAMILIES, "sdxl": "SDXL", "sdxl-refiner": "the SDXL refiner"}
"""Family -> its name in messages about adapters."""
READERS = ("attn2.to_k", "attn2.to_v", "attn2_to_k", "attn2_to_v")
"""The layers that read the context."""


def made_for(shapes: Mapping[str, Shape], words: Iterable[Word]) -> str | None:
    """Return the name of the model that a file is made for, or None where nothing tells."""
    found = family(shapes, words)
    return None if found is None else SPOKEN[found[0]]


def family(shapes: Mapping[str, Shape], words: Iterable[Word]) -> tuple[str, str] | None:
    """Return the family, a key of `found.FAMILIES`, and the reason, or None where nothing tells.

    Args:
        shapes: name of a tensor -> its shape.
        words: the names, taken apart.
    """
    words = list(words)
    for name, marks in FOREIGN.items():
        hit = next((word.key for word in words if any(mark in word.layer for mark in marks)), None)
        if hit is not None:
            return name, f"{hit} is a layer of {FAMILIES[name]}"
    layers: dict[str, dict[str, Shape]] = {}
    kinds: dict[str, str] = {}
    for word in words:
        if word.layer.endswith(READERS):
            layers.setdefault(word.layer, {})[word.part.part] = shapes[word.key]
            if word.part.algorithm in ("lora", "loha", "lokr", "full"):
                kinds[word.layer] = word.part.algorithm
    for layer, algorithm in kinds.items():
        if lacking(algorithm, frozenset(layers[layer])):
            continue
        width = extent(algorithm, layers[layer])[1]
        if width in CONTEXTS:
            return CONTEXTS[width], f"{layer} reads a context of width {width}"
    if any(word.component == "text_encoder_2" for word in words):
        return "sdxl", "it has layers of a second text encoder"
    return None
