"""`--lora FILE[:SCALE]` and `--embedding FILE`: read, attached, and named in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..core.errors import InputError
from ..picturebook import adapters_folder

if TYPE_CHECKING:
    from ..pipelines.base import DiffusionPipeline


class Lora(NamedTuple):
    """One adapter of the command line: a file, folder or repository, its weight, and what it is called."""

    where: str
    scale: float
    name: str


def parse(texts: Sequence[str]) -> list[Lora]:
    """Return the adapters that `FILE[:SCALE]` texts mean; what follows the last colon is a scale if it is a number.

    Raises:
        InputError: for an empty name, or a scale that is not finite.
    """
    found: list[Lora] = []
    for text in texts:
        where, colon, tail = text.rpartition(":")
        scale = as_number(tail) if colon else None
        where, scale = (text, 1.0) if scale is None else (where, scale)
        if not where or scale in (float("inf"), float("-inf")) or scale != scale:
            raise InputError(f"--lora is {text!r}; write FILE or FILE:SCALE, for example style.safetensors:0.8.")
        stem = Path(where).name.removesuffix(".safetensors") or "lora"
        taken = [other.name for other in found]
        name = next(name for name in (stem, *(f"{stem}-{k}" for k in range(2, len(taken) + 3))) if name not in taken)
        found.append(Lora(where, scale, name))
    return found


def as_number(text: str) -> float | None:
    """Return the number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def attach(pipe: DiffusionPipeline, texts: Sequence[str]) -> None:
    """Load the adapters of the command line into a pipeline, all of them active.

    Raises:
        InputError: for a pipeline that takes none.
        WeightsError: for a file that does not fit.
    """
    adapters = parse(texts)
    if not adapters:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} takes no --lora; leave it out, or choose another --model.")
    for one in adapters:
        pipe.load_lora_weights(shipped(one.where), adapter_name=one.name)
    pipe.set_adapters([one.name for one in adapters], [one.scale for one in adapters])  # type: ignore[attr-defined]


def told(texts: Sequence[str]) -> list[str] | None:
    """Return what a picture says about its adapters, "NAME:SCALE" each; None without any."""
    return [f"{one.name}:{one.scale:g}" for one in parse(texts)] or None


def shipped(where: str) -> str:
    """Return the file of an adapter that comes with the picturebook, for its name alone; else `where` as it is."""
    own = adapters_folder() / f"{where}.safetensors"
    return str(own) if own.is_file() and not Path(where).exists() else where


def teach(pipe: DiffusionPipeline, files: Sequence[str]) -> None:
    """Load the learned words of the command line into a pipeline.

    Raises:
        InputError: for a pipeline that learns none, or a file that does not exist.
        WeightsError: for a file that does not fit.
    """
    if not files:
        return
    if not hasattr(pipe, "load_textual_inversion"):
        raise InputError(f"{type(pipe).__name__} takes no --embedding; leave it out, or choose another --model.")
    for file in files:
        pipe.load_textual_inversion(shipped(file))
