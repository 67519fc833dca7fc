"""The nouns of single files: `Facts`, what a file is; `Layout`, how a network is written; `Family`, what files hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from .header import Header, matching
from .rules import Rules

Config = dict[str, Any]
CONFIGS = "langevin.configs"
"""Key of the metadata under which files written by this library keep the configurations of their networks."""


def nothing(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Return an empty table."""
    return {}


@dataclass(frozen=True)
class Facts:
    """What a weight file is, and how that was told.

    Attributes:
        family: name of the family, such as "stable_diffusion_xl"; the key of `Family.name`.
        kind: what the file is for within the family, such as "text-to-image" or "inpainting".
        prediction_type: "epsilon", "v_prediction", "sample", or None where nothing is predicted.
        zero_snr: whether the model was trained with noise up to a signal of zero (Lin et al. 2023, 2305.08891).
        image_size: side of the training pictures in pixels, or None.
        dtype: type of most weights, or None.
        pipeline: name of the pipeline class that the file is for, or None for a single network.
        preset: name of the bundled configurations that complete what shapes tell.
        reasons: one sentence per conclusion.
        doubts: conclusions that the file does not settle, with what to pass to settle them otherwise.
    """

    family: str
    kind: str
    prediction_type: str | None = None
    zero_snr: bool = False
    image_size: int | None = None
    dtype: torch.dtype | None = None
    pipeline: str | None = None
    preset: str | None = None
    reasons: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def explain(self) -> str:
        """Return what the file is and why, one sentence a line."""
        facts = {
            "predicts": self.prediction_type,
            "zero terminal SNR": "yes" if self.zero_snr else None,
            "pictures": f"{self.image_size} pixels" if self.image_size else None,
            "weights": str(self.dtype).removeprefix("torch.") if self.dtype else None,
            "pipeline": self.pipeline,
        }
        line = "; ".join(f"{name}: {value}" for name, value in facts.items() if value is not None)
        head = f"{self.family}, {self.kind}" + (f" ({line})" if line else "")
        return "\n".join([head, *(f"- {reason}" for reason in self.reasons), *(f"? {doubt}" for doubt in self.doubts)])

    def because(self, reason: str, **changes: Any) -> Facts:
        """Return the facts with changes and the sentence that gives their reason."""
        return replace(self, **changes, reasons=(*self.reasons, reason))

    def doubting(self, doubt: str, **changes: Any) -> Facts:
        """Return the facts with changes that the file does not settle."""
        return replace(self, **changes, doubts=(*self.doubts, doubt))


@dataclass(frozen=True)
class Layout:
    """How the authors of one network write it.

    Attributes:
        name: for reports, such as "UNet of latent diffusion".
        model: the class that takes the weights: a public name of this library, or "transformers.NAME".
        marks: patterns of names without prefix; a file holds the network when one of them is there.
        rules: from the configuration of the class (a mapping) to the rules, authors' names -> the class's names.
        infer: from the header of the network alone (prefix removed) to the configuration options that shapes tell.
        ignored: regular expression of names without prefix -> why they are not needed; anything else is an error.
        unused: the same for names that a network with the given options does not need.
    """

    name: str
    model: str
    marks: tuple[str, ...]
    rules: Callable[[Mapping[str, Any]], Rules]
    infer: Callable[[Header], Config]
    ignored: Mapping[str, str] = field(default_factory=dict)
    unused: Callable[[Mapping[str, Any]], Mapping[str, str]] = nothing


@dataclass(frozen=True)
class Place:
    """Where a file keeps one component.

    Attributes:
        component: name of the pipeline's component, such as "unet"; for a single network what it usually is called.
        prefix: what its names begin with when it is written.
        layout: how it is written.
        also: other prefixes that are read.
    """

    component: str
    prefix: str
    layout: Layout
    also: tuple[str, ...] = ()

    def prefix_in(self, header: Header) -> str | None:
        """Return the prefix under which a file holds this network, or None."""
        marks = self.layout.marks
        return next((p for p in (self.prefix, *self.also) if any(header.has(p + mark) for mark in marks)), None)


class Held(NamedTuple):
    """A network in a file: what its names begin with there, how it is written, and its whole names."""

    prefix: str
    layout: Layout
    names: tuple[str, ...]

    def unneeded(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return the names that a network with these options does not need -> why."""
        inside = (name.removeprefix(self.prefix) for name in self.names)
        found = matching(inside, {**self.layout.ignored, **self.layout.unused(config)})
        return {self.prefix + name: reason for name, reason in found.items()}


@dataclass(frozen=True)
class Family:
    """Files of one kind.

    Attributes:
        name: the key by which options and reports call it.
        recognise: from a header to `Facts`, or None when the file is of another family. Names, shapes and metadata
            only. It must not take a file of another family for its own.
        places: components that such a file may hold; those that are absent from a file are left out.
        ignored: regular expression of whole names -> why they are not needed.
        short: what an inspection calls the models, a key of `found.FAMILIES`; None where several share the layout.
    """

    name: str
    recognise: Callable[[Header], Facts | None]
    places: Sequence[Place]
    ignored: Mapping[str, str] = field(default_factory=dict)
    short: str | None = None

    def networks(self, header: Header) -> dict[str, Held]:
        """Return the networks that a file holds, by component: of nested prefixes a name belongs to the longest."""
        found = {place.component: (place.prefix_in(header), place.layout) for place in self.places}
        here = {component: (prefix, layout) for component, (prefix, layout) in found.items() if prefix is not None}
        junk = matching(header.shapes, self.ignored)
        names: dict[str, list[str]] = {prefix: [] for prefix, _ in here.values()}
        longest = sorted(names, key=len, reverse=True)
        for name in header.shapes:
            owner = next((prefix for prefix in longest if name.startswith(prefix)), None)
            if owner is not None and name not in junk:
                names[owner].append(name)
        return {component: Held(prefix, layout, tuple(names[prefix])) for component, (prefix, layout) in here.items()}
