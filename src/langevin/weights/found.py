"""What a look at names, shapes and metadata found: the answer that every detector of weight files gives.

A detector is a function `probe(entries, metadata) -> Found | None`: `entries` maps the names in a file to
`core.weights_io.Entry` (type, shape, byte range), `metadata` holds the strings stored with them, and None means that
the file is nothing that this detector knows. A probe reads no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.weights_io import Entry

FAMILIES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "the Stable Diffusion XL refiner",
    "svd": "Stable Video Diffusion",
    "flux": "Flux",
    "sd3": "Stable Diffusion 3",
    "kandinsky": "Kandinsky 2",
    "wan": "Wan",
    "stable-cascade": "Stable Cascade",
}
"""Short name of a family -> its name in a sentence."""
CONTEXTS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Width of the text that a UNet attends to -> family."""


def family_by_context(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the family whose text the cross-attentions of a network read, or None."""
    keys = (shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2)
    return next((CONTEXTS.get(shape[1]) for shape in keys), None)


@dataclass(frozen=True)
class Found:
    """What a weight file is.

    Attributes:
        kind: "checkpoint", "unet", "vae", "text encoder", "lora", "textual inversion", "controlnet", "ip-adapter" ...
        family: the model family it is or is made for, a key of `FAMILIES`, or None where nothing tells.
        dialect: how its names are spelt, "original", "diffusers", "kohya" ..., or None where there is only one way.
        details: further facts by name, each a text, a number, or a list of these, in the order of printing; what is
            None or empty is not told.
        reasons: what the answer rests on, one sentence each.
        doubts: what the file does not settle, one sentence each.
        incomplete: what is there in part, one phrase each.
    """

    kind: str
    family: str | None = None
    dialect: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()


class Probe(Protocol):
    """A detector of weight files."""

    def __call__(self, entries: Mapping[str, Entry], metadata: Mapping[str, str], /) -> Found | None:
        """Say what the file is, or None."""
