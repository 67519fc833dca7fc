"""An opened weight file seen through rules: the names and shapes a model expects, read tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.errors import WeightsError
from ..core.pickles import PickleFile
from ..core.report import some
from ..core.weights_io import Entry, SafetensorsFile
from ..models.loading import FiniteCheck, fetch
from .header import Header, Shape
from .keras import SIGNATURE, KerasFile, refuse_program
from .ops import Same
from .rules import Move, Rules

SAFETENSORS, ARCHIVE, PICKLE = "safetensors", "a torch archive", "a torch file of the older format"
KERAS, GGUF = "HDF5 (Keras)", "GGUF"
"""Formats of weight files; the last one is known and not read."""
Source = Any
"""An opened file: `entries` (name -> type and shape), `metadata`, `read`, `view`."""


class MemoryFile:
    """Tensors in memory, with what an opened file has; nothing is copied before it is asked for.

    Attributes:
        entries: name -> type and shape.
        metadata: empty.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        self.entries = {name: Entry(value.dtype, tuple(value.shape), 0, 0) for name, value in self.tensors.items()}
        others = {name: value for name, value in tensors.items() if isinstance(value, (str, int, float))}
        self.metadata = {name: str(value) for name, value in others.items()}

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *reason: object) -> None:
        self.tensors = {}

    def view(self, name: str) -> Tensor | None:
        """Return None: a model gets copies."""
        return None

    def read(self, targets: Mapping[str, Tensor], each: Callable[[Tensor, str], None] | None = None) -> None:
        """Copy and cast tensors into targets; `each` is called with every one, flat, and with its name."""
        for name, target in targets.items():
            target.copy_(self.tensors[name])
            if each is not None:
                each(target.view(-1), name)


def format_of(path: str | os.PathLike) -> str | None:
    """Return how a weight file is written, told by its first bytes and not by its name; None for any other file."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(SIGNATURE):
        return KERAS
    if head.startswith(b"GGUF"):
        return GGUF
    if head[8:] == b"{" and not head.lstrip().startswith(b"{"):
        return SAFETENSORS
    return ARCHIVE if head.startswith(b"PK") else PICKLE if head.startswith(b"\x80") else None


def open_weights(path: str | os.PathLike) -> Source:
    """Open a weight file of any format; a context manager."""
    written = format_of(path)
    if written == KERAS:
        return KerasFile(path)
    refuse_program(path)
    return PickleFile(path) if written in (ARCHIVE, PICKLE) else SafetensorsFile(path)


def header_of(path: str | os.PathLike) -> Header:
    """Return the header of a weight file, without reading values."""
    with open_weights(path) as source:
        return Header.of(source.entries, source.metadata)


def read_tensors(source: Source) -> dict[str, Tensor]:
    """Return the tensors of an opened file; they are views of it where that is possible."""
    found: dict[str, Tensor] = {}
    for name, entry in source.entries.items():
        view = source.view(name)
        if view is None:
            view = torch.empty(entry.shape, dtype=entry.dtype)
            source.read({name: view})
        found[name] = view
    return found


class Converted:
    """Tensors of an opened file under the names that rules give them.

    Args:
        names: the names to take.
        known: names of the model; what leads to none of them is foreign.
        prefix: what precedes the names that the rules know.
        spell: how the model spells the names of the rules' targets.
        stored: name -> the name under which its values are taken instead.
    Attributes:
        shapes: present name -> shape; a name that no rule knows stays as it is.
        renamed: name in the file -> the present names, joined by commas.
        foreign: names in the file that no rule knows, or that lead to no name of the model.
    Raises:
        WeightsError: when names that belong together are not all there, or two names lead to one place.
    """

    def __init__(
        self,
        source: Source,
        rules: Rules,
        *,
        names: Iterable[str],
        known: Container[str] | None = None,
        prefix: str = "",
        spell: Callable[[str], str] = str,
        stored: Mapping[str, str] | None = None,
        use_map: bool = True,
    ) -> None:
        self.source, self.use_map = source, use_map
        self.shapes: dict[str, Shape] = {}
        self.renamed: dict[str, str] = {}
        self._moves: dict[str, Move] = {}
        plan = rules.plan(name.removeprefix(prefix) for name in names)
        if plan.partial:
            lacking = sorted({prefix + n for m in plan.partial for n in m.sources if prefix + n not in source.entries})
            raise WeightsError(f"the file lacks {some(lacking)}, without which its neighbours cannot be read")
        self.foreign = [prefix + name for name in plan.foreign]
        held = stored or {}
        for move in plan.moves:
            targets = tuple(map(spell, move.targets))
            if known is not None and not any(target in known for target in targets):
                self.foreign += [prefix + name for name in move.sources]
                continue
            self._add(Move(tuple(held.get(prefix + name, prefix + name) for name in move.sources), targets, move.op))
        self.shapes |= {name: tuple(source.entries[name].shape) for name in self.foreign}

    def _add(self, move: Move) -> None:
        given = {name: tuple(self.source.entries[name].shape) for name in move.sources}
        for name, shape in move.shapes(given).items():
            if name in self._moves:
                both = some([*self._moves[name].sources, *move.sources])
                raise WeightsError(f"the file holds {name} under two names: {both}")
            self.shapes[name] = shape
            self._moves[name] = move
        for name in move.sources:
            self.renamed[name] = ", ".join(move.targets)

    def load(
        self, names: Iterable[str], *, dtype: torch.dtype | None, device: torch.device, check_finite: bool | None
    ) -> dict[str, Tensor]:
        """Return tensors on `device`, floating-point ones cast to `dtype`; what keeps its values is read directly.

        Raises WeightsError when a result holds NaN or infinity and is looked at; see `models.loading.fetch`.
        """
        wanted = list(names)
        check = None if check_finite is False else FiniteCheck(mapped=check_finite is True)
        plain = {name: self._moves[name] for name in wanted if isinstance(self._moves[name].op, Same)}
        places = {n: (self.source, m.sources[m.targets.index(n)]) for n, m in plain.items()}
        loaded = fetch(places, self.shapes, dtype=dtype, device=device, check=check, use_map=self.use_map)
        moves = {self._moves[name].targets: self._moves[name] for name in wanted if name not in plain}
        for move in moves.values():
            for name, value in move.carry({stored: self._read(stored) for stored in move.sources}).items():
                if name in wanted:
                    kind = dtype if value.is_floating_point() else None
                    loaded[name] = value.to(device=device, dtype=kind, copy=True).contiguous()
                    if check is not None:
                        check(loaded[name], name)
        if check is not None:
            check.settle(loaded)
        return {name: loaded[name] for name in wanted}

    def _read(self, stored: str) -> Tensor:
        """Return one tensor as the file holds it."""
        entry = self.source.entries[stored]
        value = torch.empty(entry.shape, dtype=entry.dtype)
        self.source.read({stored: value})
        return value


class Reverted(Mapping[str, Tensor]):
    """A state dict seen through rules turned around, each tensor made when it is asked for.

    Args:
        state: a model's tensors under names that the targets of the rules know.
        rules: authors' names -> the model's names.
        prefix: put before every name.
        dtype: type of floating-point tensors, or None to keep theirs.
    Raises:
        WeightsError: for names that the rules do not know.
    """

    def __init__(
        self, state: Mapping[str, Tensor], rules: Rules, *, prefix: str = "", dtype: torch.dtype | None = None
    ) -> None:
        self.state, self.dtype = state, dtype
        plan = rules.inverse.plan(state)
        unknown = [*plan.foreign, *(name for move in plan.partial for name in move.sources if name in state)]
        if unknown:
            raise WeightsError(f"the authors' layout has no place for {some(unknown)}")
        self._moves = {prefix + name: (move, at) for move in plan.moves for at, name in enumerate(move.targets)}

    def __getitem__(self, name: str) -> Tensor:
        move, at = self._moves[name]
        value = move.op([self.state[source] for source in move.sources])[at]
        return value.to(self.dtype) if value.is_floating_point() and self.dtype is not None else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._moves)

    def __len__(self) -> int:
        return len(self._moves)
