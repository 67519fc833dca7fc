"""Weights of an adapter as callers write them: one number, or numbers by layer, component or block of a UNet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..core.errors import ConfigError, InputError, check_known, is_number
from ..core.report import paired, some

Weight = float | Mapping[str, float] | Callable[[str], float]
"""Of an adapter in a network: one number, or numbers by path (a prefix or a regular expression; the last key that
matches a layer counts, layers that none matches have 1), or a function of the path."""
Given = float | Mapping[str, Any] | None
"""Of an adapter in a pipeline: a number, numbers by component and block, or None for 1."""
PLACE = re.compile(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.attentions\.(\d+)")


def finite(value: Any, what: str) -> float:
    """Return a finite number as float."""
    if not is_number(value):
        raise InputError(f"{what} is {value!r}; it must be a number, and finite.")
    return float(value)


# By layer ------------------------------------------------------------------------------------------------------------


def weighed(name: str, weight: Weight, paths: Iterable[str]) -> dict[str, float]:
    """Return path -> weight of an adapter; see `Weight`."""
    what, paths = f"the weight of the adapter {name!r}", list(paths)
    if callable(weight):
        return {path: finite(weight(path), f"{what} in {path!r}") for path in paths}
    if not isinstance(weight, Mapping):
        return dict.fromkeys(paths, finite(weight, what))
    found = dict.fromkeys(paths, 1.0)
    for key, value in weight.items():
        hits = [path for path in paths if not key or path == key or path.startswith(f"{key}.")]
        hits = hits or [path for path in paths if searched(key, path)]
        if not hits:
            raise ConfigError(f"{what}: no layer of the adapter has the path {some(paired([key], paths))}.")
        found.update(dict.fromkeys(hits, finite(value, f"{what} for {key!r}")))
    return found


def searched(pattern: str, path: str) -> bool:
    """Tell whether a regular expression is found in a path; what is no regular expression is not."""
    try:
        return re.search(pattern, path) is not None
    except re.error:
        return False


# By component and block ----------------------------------------------------------------------------------------------


def weight_in(component: str, model: nn.Module, name: str, weight: Given) -> Weight:
    """Return the weight of an adapter in one network.

    Args:
        weight: a number; `{"unet": ..., "text_encoder": ...}`, where a component that is left out has 1; in a UNet also
            `{"down": ..., "mid": ..., "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1.0]}}`, which is for attentions
            alone: all other layers have 1.
    """
    inside = weight.get(component) if isinstance(weight, Mapping) else weight
    if inside is None:
        return 1.0
    if not isinstance(inside, Mapping):
        return finite(inside, f"The weight of the adapter {name!r} in the {component}")
    if not hasattr(model, "down_blocks"):
        raise InputError(f"The weight of the adapter {name!r} in the {component} must be a number: it has no blocks.")
    table = weight_by_transformer((path for path, _ in model.named_modules()), inside, default=1.0)

    def by_block(path: str) -> float:
        place = PLACE.match(path)
        return 1.0 if place is None else table[place[0]]

    return by_block


def weight_by_transformer(names: Iterable[str], weights: Mapping[str, Any], *, default: float) -> dict[str, float]:
    """Return a weight for every transformer of a UNet.

    Args:
        names: of modules of the UNet; see `places`.
        weights: `{"down": ..., "mid": ..., "up": ...}`, each a number for all its blocks or `{"block_1": ...}`, each of
            these a number or a list with one number per transformer of the block; a list of one serves all.
        default: the weight of what is not named.

    Raises:
        ConfigError: for a direction or a block that the UNet does not have, or without transformers.
        InputError: for a list of another length, or what is no number.
    """
    known = places(names)
    check_known("A weight per block", weights, known)
    made = {name: default for blocks in known.values() for row in blocks.values() for name in row}
    for direction, inside in weights.items():
        blocks = known[direction]
        if isinstance(inside, Mapping):
            check_known(f"{direction!r} of a weight per block of this UNet", inside, blocks)
        given = inside if isinstance(inside, Mapping) else dict.fromkeys(blocks, inside)
        for block, value in given.items():
            made |= dict(zip(blocks[block], spread(f"{direction} {block}", value, len(blocks[block])), strict=True))
    return made


def places(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return the transformers of a UNet by direction ("down", "mid", "up") and block ("block_0" ...), in order.

    Args:
        names: of any modules of the UNet; a transformer is called by the start of the names in it, as
            "up_blocks.1.attentions.0".
    """
    found: dict[str, dict[str, list[str]]] = {"down": {}, "mid": {}, "up": {}}
    for name in names:
        if match := PLACE.match(name):
            direction, block = match[1] or match[3], f"block_{match[2] or 0}"
            row = found[direction].setdefault(block, [])
            if match[0] not in row:
                row.append(match[0])
    return found


def spread(what: str, value: Any, count: int) -> list[float]:
    """Return one number per transformer from a number or a list."""
    row = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(row) not in (1, count):
        raise InputError(f"{what} has {len(row)} weights for {count} transformers; give one, or one for each.")
    numbers = [finite(one, f"The weight of {what}") for one in row]
    return numbers if len(row) == count else numbers * count
