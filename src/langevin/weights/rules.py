"""Rules: how the names of one dialect correspond to those of another, in both directions.

A rule pairs names, `rule("label_emb.0.0", "add_embedding.linear_1")`, and holds for everything below them, so `.weight`
and `.bias` ride along, and so do whole blocks that both sides call the same. `{}` stands for a number and is carried
over. A list of rules is turned around by `Rules.inverse`, and applied to names only: what comes out is a list of
moves, which may be carried out tensor by tensor, or on meta tensors when only shapes are wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import WeightsError
from .ops import SAME, Op

Shape = tuple[int, ...]
HOLE = "{}"


def as_regex(pattern: str, rest: str = "") -> re.Pattern[str]:
    """Return a pattern with holes as a regular expression, with a group for every number and `rest` behind it."""
    return re.compile(re.escape(pattern).replace(re.escape(HOLE), r"(\d+)") + rest)


@dataclass(frozen=True)
class Rule:
    """Names of sources and targets, and the operation between their tensors; see `rule`."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    op: Op = SAME
    old: bool = False

    @property
    def inverse(self) -> Rule:
        """The same correspondence from the targets to the sources."""
        return Rule(self.targets, self.sources, self.op.inverse)

    def move(self, numbers: Sequence[str], rest: str) -> Move:
        """Return the rule for the numbers in the holes and the rest of a name."""

        def fill(patterns: Iterable[str]) -> tuple[str, ...]:
            return tuple(dotted(pattern.format(*numbers), rest) for pattern in patterns)

        return Move(fill(self.sources), fill(self.targets), self.op)


class Move(NamedTuple):
    """The names of tensors, those that become of them, and the operation between."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    op: Op

    def carry(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the targets' tensors by name; they may share memory with the sources."""
        made = self.op([tensors[name] for name in self.sources])
        return dict(zip(self.targets, made, strict=True))

    def shapes(self, given: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shapes of the targets by name.

        Raises:
            WeightsError: when the operation makes no sense for the shapes of the sources.
        """
        try:
            made = self.carry({name: torch.empty(given[name], device="meta") for name in self.sources})
        except (RuntimeError, ValueError, IndexError) as error:
            told = ", ".join(f"{name} {list(given[name])}" for name in self.sources)
            raise WeightsError(f"the file is damaged or of another layout: {told} cannot be read") from error
        return {name: tuple(tensor.shape) for name, tensor in made.items()}


class Plan(NamedTuple):
    """What rules make of a list of names.

    Attributes:
        moves: in the order of the names.
        foreign: names that no rule knows.
        partial: moves that lack some of their sources.
    """

    moves: list[Move]
    foreign: list[str]
    partial: list[Move]


def rule(source: str | Sequence[str], target: str | Sequence[str], op: Op = SAME, *, old: bool = False) -> Rule:
    """Return a rule between one or several names each.

    Args:
        old: an older spelling, which is read and never written.
    """
    sources = (source,) if isinstance(source, str) else tuple(source)
    targets = (target,) if isinstance(target, str) else tuple(target)
    return Rule(sources, targets, op, old)


def dotted(*parts: str) -> str:
    """Join parts of a name with dots, leaving out empty ones."""
    return ".".join(part for part in parts if part)


def below(source: str, target: str, rules: Iterable[Rule]) -> list[Rule]:
    """Return rules for the inside of a block as rules for the block's place on both sides."""
    return [
        Rule(
            tuple(dotted(source, name) for name in each.sources),
            tuple(dotted(target, name) for name in each.targets),
            each.op,
            each.old,
        )
        for each in rules
    ]


def renamed(names: dict[str, str], op: Op = SAME) -> list[Rule]:
    """Return one rule per pair of a table source -> target."""
    return [rule(source, target, op) for source, target in names.items()]


@dataclass
class _Node:
    """A place in the tree of name parts: rules that end here, and what may follow."""

    ends: tuple[Rule, ...] = ()
    literal: dict[str, _Node] = field(default_factory=dict)
    holes: dict[str, tuple[re.Pattern[str], _Node]] = field(default_factory=dict)

    def child(self, part: str) -> _Node:
        if HOLE not in part:
            return self.literal.setdefault(part, _Node())
        return self.holes.setdefault(part, (as_regex(part), _Node()))[1]


class Rules:
    """A list of rules, ready to be applied. Of the rules that know a name, the one that knows most of it counts."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._found: dict[str, Move | None] = {}

    @cached_property
    def inverse(self) -> Rules:
        """The rules from the targets to the sources, without older spellings."""
        return Rules(each.inverse for each in self.rules if not each.old)

    @cached_property
    def _tree(self) -> _Node:
        root = _Node()
        for each in self.rules:
            for source in each.sources:
                node = root
                for part in filter(None, source.split(".")):
                    node = node.child(part)
                node.ends = (*node.ends, each)
        return root

    def find(self, name: str) -> Move | None:
        """Return what becomes of a name, with the names that it needs beside it, or None when no rule knows it."""
        if name not in self._found:
            parts = name.split(".")
            known = _deepest(self._tree, parts, 0, ())
            self._found[name] = None if known is None else known[0][0].move(known[2], ".".join(parts[known[1] :]))
        return self._found[name]

    def plan(self, names: Iterable[str]) -> Plan:
        """Return what becomes of names."""
        names = list(dict.fromkeys(names))
        here = set(names)
        moves: dict[tuple[str, ...], Move] = {}
        foreign = []
        for name in names:
            move = self.find(name)
            if move is None:
                foreign.append(name)
            else:
                moves.setdefault(move.sources, move)
        whole = {key: move for key, move in moves.items() if here.issuperset(move.sources)}
        return Plan(list(whole.values()), foreign, [move for key, move in moves.items() if key not in whole])


def _deepest(node: _Node, parts: Sequence[str], at: int, numbers: tuple[str, ...]) -> Any:
    """Return the rules that know most of a name from its part `at`, how much, and the numbers in their holes."""
    best = (node.ends, at, numbers) if node.ends else None
    if at == len(parts):
        return best
    below_here = [(node.literal[parts[at]], numbers)] if parts[at] in node.literal else []
    matches = ((pattern.fullmatch(parts[at]), child) for pattern, child in node.holes.values())
    below_here += [(child, (*numbers, *match.groups())) for match, child in matches if match]
    for child, found_numbers in below_here:
        found = _deepest(child, parts, at + 1, found_numbers)
        if found is not None and (best is None or found[1] > best[1]):
            best = found
    return best
