"""Which models an adapter is made for, told by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .grammar import FOREIGN
from .naming import Shape, extent, lacking

if TYPE_CHECKING:
    from .lora import Word

WIDTHS: Mapping[int, tuple[str, str]] = {
    768: ("sd1", "Stable Diffusion 1"),
    1024: ("sd2", "Stable Diffusion 2"),
    2048: ("sdxl", "SDXL"),
    1280: ("sdxl-refiner", "the SDXL refiner"),
}
"""Width of the context that cross-attentions read -> (family, its name). They tell published models apart."""
READERS = ("attn2.to_k", "attn2.to_v", "attn2_to_k", "attn2_to_v")
"""The layers that read the context."""


def made_for(shapes: Mapping[str, Shape], words: Iterable[Word]) -> str | None:
    """Return the name of the model that a file is made for, or None where nothing tells."""
    found = family(shapes, words)
    return None if found is None else found[1]


def family(shapes: Mapping[str, Shape], words: Iterable[Word]) -> tuple[str, str, str] | None:
    """Return (family, name, reason), or None where nothing tells.

    Args:
        shapes: name of a tensor -> its shape.
        words: the names, taken apart.
    """
    words = list(words)
    for name, marks in FOREIGN.items():
        hit = next((word.key for word in words if any(mark in word.layer for mark in marks)), None)
        if hit is not None:
            return name.lower().replace(" ", "-"), name, f"{hit} is a layer of {name}"
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
        if width in WIDTHS:
            return *WIDTHS[width], f"{layer} reads a context of width {width}"
    if any(word.component == "text_encoder_2" for word in words):
        return "sdxl", "SDXL", "it has layers of a second text encoder"
    return None
