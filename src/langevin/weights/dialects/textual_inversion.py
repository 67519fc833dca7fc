"""Files of learned words (textual inversion, Gal et al. 2022, 2208.01618): layouts as data, read and written.

    diffusers    {"<word>": vectors}, one entry per word, in .bin, .pt or .safetensors
    a1111        {"string_to_param": {"*": vectors}, "string_to_token": ..., "name": "word"} in .pt, and
                 {"emb_params": vectors} in .safetensors, where the file's name is the word
    sdxl         {"clip_l": vectors, "clip_g": vectors}: one word for two text encoders; the file's name is the word
    sdxl-train   the same as {"text_encoders_0": vectors, "text_encoders_1": vectors}

Vectors are (width,) or (number, width), one for each token that the word stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError, WeightsError, check_choice
from ...core.files import atomic_file
from ...core.pickles import read_objects
from ...core.report import some
from ...core.weights_io import Entry, SafetensorsFile, describe, write_pickled, write_safetensors
from ..checkpoint import ARCHIVE, PICKLE, format_of, read_tensors
from ..found import Found

ANY = ""
"""Stands for the one text encoder of layouts that name none."""

ENCODERS: dict[str, dict[str, str]] = {
    "a1111": {"emb_params": ANY},
    "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    "sdxl-train": {"text_encoders_0": "text_encoder", "text_encoders_1": "text_encoder_2"},
}
"""Layout -> name in the file -> the component whose vectors stand there. These files do not say the word."""

PARAMETERS = "string_to_param"
"""What marks the pickled layout of A1111."""

WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
"""Width of the vectors -> the family whose text encoder has it."""

MAX_WORDS = 64
"""A file with more entries is not taken for a file of words."""

SUFFIXES = (".safetensors", ".bin", ".pt")
LAYOUTS = ("diffusers", "a1111")
NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")
"""What a file of words is called in a folder or repository, in the order of search."""


@dataclass(frozen=True)
class Learned:
    """A learned word as a file holds it.

    Attributes:
        word: what the file calls it, or None where it does not say.
        vectors: component, or ANY, -> (number, width).
        layout: see the module.
        stored: the names in the file.
    """

    word: str | None
    vectors: Mapping[str, Tensor]
    layout: str
    stored: tuple[str, ...] = ()


def parse(state: Any, what: str) -> list[Learned]:
    """Read learned words from the object that a file holds, or a single tensor of vectors.

    Args:
        what: the file, for messages.
    Raises:
        WeightsError: when it is in no layout known here, or its vectors are none.
    """
    if isinstance(state, Tensor):
        return [Learned(None, {ANY: _rows(state, "the tensor", what)}, "tensor")]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(
            f"{what} holds no learned word: it holds {type(state).__name__ if state != {} else 'nothing'}"
        )
    if PARAMETERS in state:
        return _pickled(state, what)
    for layout, places in ENCODERS.items():
        if set(state) <= set(places):
            vectors = {places[name]: _rows(value, name, what) for name, value in state.items()}
            _check_equal(vectors, what)
            return [Learned(None, vectors, layout, tuple(state))]
    if len(state) > MAX_WORDS:
        raise WeightsError(
            f"{what} is no file of learned words: it has {len(state)} entries, {some(list(map(str, state))[:3])} ..."
        )
    return [
        Learned(str(word), {ANY: _rows(value, word, what)}, "diffusers", (str(word),)) for word, value in state.items()
    ]


def _pickled(state: Mapping[str, Any], what: str) -> list[Learned]:
    parameters = state[PARAMETERS]
    if not isinstance(parameters, Mapping) or not parameters:
        raise WeightsError(
            f"{what} has no vectors under {PARAMETERS!r}; the file is damaged or was written by another tool"
        )
    own = state.get("name")
    own = str(own) if own not in (None, "", "*") else None
    return [
        Learned(
            own if place == "*" or (len(parameters) == 1 and own) else str(place),
            {ANY: _rows(value, place, what)},
            "a1111",
            (f"{PARAMETERS}.{place}",),
        )
        for place, value in parameters.items()
    ]


def _rows(value: Any, name: object, what: str) -> Tensor:
    """Return vectors as (number, width).

    Raises:
        WeightsError: unless they are finite floating-point numbers of one or two dimensions.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (1, 2) or not value.numel():
        kind = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise WeightsError(
            f"{what} is no file of learned words: {str(name)!r} is {kind} where vectors (number, width) are expected"
        )
    if not torch.isfinite(value).all():
        raise WeightsError(f"{what} is damaged: the vectors of {str(name)!r} hold NaN or infinity")
    return value.detach().reshape(-1, value.shape[-1])


def _check_equal(vectors: Mapping[str, Tensor], what: str) -> None:
    counts = {name: len(rows) for name, rows in vectors.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} for {name}" for name, count in counts.items())
        raise WeightsError(f"{what} has different numbers of vectors for its text encoders: {told}")


def read(path: Path) -> list[Learned]:
    """Read the learned words in a file; a word that the file does not say is the file's name, as in A1111.

    Raises:
        WeightsError: when the file is damaged, names code, or holds no learned words.
    """
    with open(path, "rb") as file:
        if file.read(8).startswith((b"\x89PNG", b"RIFF", b"\xff\xd8\xff")):
            raise WeightsError(
                f"{path} is {describe(path)}: words hidden in pictures are not read; save the word as .pt or "
                ".safetensors in the tool that made it"
            )
    if format_of(path) in (ARCHIVE, PICKLE):
        state = read_objects(path)
    else:
        with SafetensorsFile(path) as weights:
            state = read_tensors(weights)
    named = None if path.name in NAMES else path.stem
    return [replace(each, word=each.word or named) for each in parse(state, str(path))]


def write(path: Path, words: Mapping[str, Mapping[str, Tensor]], layout: str = "diffusers") -> None:
    """Write learned words, whole or not at all.

    Args:
        path: .safetensors, .bin or .pt.
        words: word -> component -> vectors (number, width). A word of two components is written as `clip_l` and
            `clip_g` in either layout.
        layout: "diffusers" or "a1111".
    Raises:
        InputError: for another file type, or words that do not fit into one file of this layout.
    """
    check_choice("`layout`", layout, LAYOUTS)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path.name!r} ends with none of {', '.join(SUFFIXES)}, by which files of words are known.")
    double = [word for word, vectors in words.items() if len(vectors) > 1]
    if len(words) > 1 and (double or layout == "a1111"):
        raise InputError(
            f"A file in this layout holds one word and not {len(words)} ({some(list(words))}); save one file for each."
        )
    state = _state(words, layout, bool(double), pickled=path.suffix != ".safetensors")
    with atomic_file(path) as partial:
        if path.suffix == ".safetensors":
            write_safetensors(
                partial, state, {"format": "pt", **({"name": next(iter(words))} if len(words) == 1 else {})}
            )
        else:
            write_pickled(partial, state)


def _state(words: Mapping[str, Mapping[str, Tensor]], layout: str, double: bool, *, pickled: bool) -> dict[str, Any]:
    """Return what a file in a layout holds."""
    whole = {w: {n: _copy(rows) for n, rows in vectors.items()} for w, vectors in words.items()}
    (word, vectors), *_ = whole.items()
    if double:
        return {name: vectors[component] for name, component in ENCODERS["sdxl"].items()}
    alone = {word: next(iter(vectors.values())) for word, vectors in whole.items()}
    if layout == "diffusers":
        return {w: rows[0] if len(rows) == 1 else rows for w, rows in alone.items()}
    if not pickled:
        return {"emb_params": alone[word]}
    return {"string_to_token": {"*": 265}, PARAMETERS: {"*": alone[word]}, "name": word, "step": 0}


def _copy(rows: Tensor) -> Tensor:
    return rows.detach().cpu().contiguous().clone()


def probe(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say what a file of learned words holds, or None when it is none."""
    entries = {name: entry for name, entry in entries.items() if not name.startswith("string_to_token.")}
    shapes = {name: entry.shape for name, entry in entries.items()}
    vectors = all(e.dtype.is_floating_point and len(e.shape) in (1, 2) and 0 not in e.shape for e in entries.values())
    if not vectors or not 0 < len(shapes) <= MAX_WORDS:
        return None
    layout, words, reason = _layout(shapes, metadata)
    if layout is None:
        return None
    widths = sorted({shape[-1] for shape in shapes.values()})
    families = {WIDTHS.get(width) for width in widths} - {None}
    family = "sdxl" if layout.startswith("sdxl") else families.pop() if len(families) == 1 else None
    details: dict[str, Any] = {
        "words": words,
        "vectors": max(shape[0] if len(shape) == 2 else 1 for shape in shapes.values()),
        "widths": widths,
    }
    return Found("textual inversion", family, layout, details, (reason,))


def _layout(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> tuple[str | None, list[str], str]:
    """Return the layout that names and shapes are in, the words they say, and why."""
    said = [metadata["name"]] if metadata.get("name") else []
    if all(name.startswith(f"{PARAMETERS}.") for name in shapes):
        return "a1111", said, f"its vectors stand under {PARAMETERS!r}"
    for layout, places in ENCODERS.items():
        if set(shapes) <= set(places):
            return layout, said, f"its names are {some(sorted(shapes))}"
    if all(shape[-1] in WIDTHS for shape in shapes.values()) and _are_words(shapes):
        return "diffusers", list(shapes), f"its {len(shapes)} entries are vectors as wide as a text encoder's"
    return None, [], ""


def _are_words(names: Iterable[str]) -> bool:
    """Tell whether names can be words, and not parameters of a network."""
    return not any(
        name.endswith((".weight", ".bias", ".alpha", "_weight", "_bias")) or "lora" in name for name in names
    )
