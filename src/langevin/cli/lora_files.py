"""What `langevin lora` does: LoRAs merged for a model, and one taken from the difference of two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapters import extraction, lora
from ..adapters.files import open_source
from ..core.errors import InputError
from ..core.rng import seeded
from ..models.placement import resolve_dtype
from ..pipelines.base import DiffusionPipeline
from ..pipelines.lora import COMPONENTS
from .convert import parts_of, read_file, refuse_existing
from .loras import parse, shipped
from .model import is_single_file
from .request import place_of


def merge(
    files: Sequence[str],
    model: str,
    output: str,
    *,
    method: str = "svd",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    dialect: str | None = None,
) -> str:
    """Merge LoRAs for a model and return the path of the file that was written; see `adapters.merging.merge`."""
    place = writable(output)
    models, given = networks(model), parse(files)
    for one in given:
        lora.load(models, open_source(shipped(one.where)), name=one.name)
    names = [one.name for one in given]
    name = lora.free_name(names, "merged")
    options: dict[str, Any] = {"combination_type": method, "svd_rank": rank, "density": density}
    if method.startswith("dare"):
        options["generator"] = seeded(seed)
    lora.combine(models, names, [one.scale for one in given], name, **options)
    lora.save(models, place.parent, name=name, dialect=dialect, weight_name=place.name)
    return str(place)


def extract(
    tuned: str, base: str, output: str, *, dialect: str | None = None, dtype: str = "float16", **how: Any
) -> list[str]:
    """Write a LoRA and return what it keeps of each component, and the path of the file.

    Args:
        how: rank, energy and niter of `adapters.extraction.extract`.

    Raises:
        InputError: the two models share no network, or all of these are equal.
    """
    place, kind = writable(output), resolve_dtype(dtype, None)
    ours, theirs = networks(tuned), networks(base)
    adapter, lines = {}, []
    for component, network in ours.items():
        if component in theirs and differ(network, theirs[component]):
            adapter[component], report = extraction.extract(network, theirs[component], dtype=kind, **how)
            ranks = [row.rank for row in report.layers]
            lines.append(
                f"{component}: {len(ranks)} layers of rank {min(ranks)} to {max(ranks)}, "
                f"{report.energy:.1%} of the difference, error {report.error:.2e}"
            )
    if not adapter:
        raise InputError(f"{tuned} and {base} do not differ in any of: {', '.join(ours)}; there is nothing to extract.")
    lora.write(adapter, place.parent, dialect=dialect, weight_name=place.name)
    return [*lines, str(place)]


def writable(output: str) -> Path:
    """Return the path of a result.

    Raises:
        InputError: for a name that is no .safetensors file, or that is there already.
    """
    path = Path(output).expanduser()
    if path.suffix != ".safetensors":
        raise InputError(f"--output is {output}; name a .safetensors file.")
    refuse_existing(path)
    return path


def networks(model: str) -> dict[str, Any]:
    """Return the networks of a model that adapters can change, by component."""
    place = place_of(model)
    thing = read_file(place)[0] if is_single_file(place) else DiffusionPipeline.from_pretrained(place)
    return {name: part for name, part in parts_of(thing).items() if name in COMPONENTS and isinstance(part, nn.Module)}


def differ(one: Any, other: Any) -> bool:
    """Tell whether two networks have other names or values."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() != theirs.keys() or any(not torch.equal(value, theirs[name]) for name, value in mine.items())
