"""Weights of Custom Diffusion (Kumari et al. 2023, 2212.04488): projections in place of an attention's own, as data.

A file names them `ATTENTION.processor.to_k_custom_diffusion.weight`, and so for v, q and out.0 (with bias). Keys and
values of cross-attention are trained, with `freeze_model=crossattn` queries and outputs too. Files that torch.save
wrote also hold an empty dictionary for each attention that has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core.errors import WeightsError
from ...core.report import some
from ...core.weights_io import Entry
from ..found import Found

NAME = re.compile(r"(?P<attention>.+)\.processor\.(?P<part>to_(?:[qkv]|out)_custom_diffusion(?:\.0)?\.(?:weight|bias))")
FILES = ("pytorch_custom_diffusion_weights.safetensors", "pytorch_custom_diffusion_weights.bin")
"""Names of the files, with and without safetensors."""

KEYS_VALUES = ("to_k_custom_diffusion.weight", "to_v_custom_diffusion.weight")
QUERIES_OUTPUTS = ("to_q_custom_diffusion.weight", "to_out_custom_diffusion.0.weight")
WHOLE = (KEYS_VALUES, QUERIES_OUTPUTS)
"""Parts that come together."""

Attentions = dict[str, dict[str, Tensor]]
"""Path of an attention -> part -> tensor."""


def parse(state: Mapping[str, Any]) -> Attentions:
    """Return the parts of every attention in a file.

    Raises:
        WeightsError: for names that are none of Custom Diffusion's, and attentions with half of their parts.
    """
    found: Attentions = {}
    foreign = []
    for name, value in state.items():
        match = NAME.fullmatch(name)
        if match is not None:
            found.setdefault(match["attention"], {})[match["part"]] = value
        elif not (isinstance(value, Mapping) and not value):
            foreign.append(name)
    if foreign or not found:
        what = f"these names are none of theirs: {some(foreign)}" if foreign else "it holds none"
        raise WeightsError(f"The file was taken for weights of Custom Diffusion, and {what}")
    for attention, parts in found.items():
        for group in WHOLE:
            missing = [part for part in group if part not in parts]
            if missing and len(missing) < len(group):
                raise WeightsError(f"{attention} lacks {some(missing)}; the file is damaged or incomplete")
    return found


def spell(attentions: Attentions) -> dict[str, Tensor]:
    """Return the names in a file for the parts of attentions."""
    return {
        f"{attention}.processor.{part}": tensor
        for attention, parts in attentions.items()
        for part, tensor in parts.items()
    }


def probe(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say what a file of Custom Diffusion weights holds, or None when it is none."""
    names = [match for name in entries if (match := NAME.fullmatch(name))]
    if not names or len(names) < len(entries):
        return None
    parts = sorted({match["part"].split("_custom_diffusion")[0] for match in names})
    details = {"attentions": len({match["attention"] for match in names}), "projections": parts}
    return Found("custom diffusion", None, "diffusers", details, (f"its names end as {names[0]['part']!r} does",))
