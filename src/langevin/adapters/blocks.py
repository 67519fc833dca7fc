"""Weights of an adapter that differ from block to block of a UNet, written as nested dictionaries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.errors import InputError, check_known

PLACE = re.compile(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.attentions\.(\d+)")


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


def spread(what: str, value: Any, count: int) -> list[float]:
    """Return one number per transformer from a number or a list."""
    row = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(row) not in (1, count):
        raise InputError(f"{what} has {len(row)} weights for {count} transformers; give one, or one for each.")
    for one in row:
        if isinstance(one, bool) or not isinstance(one, (int, float)):
            raise InputError(f"{what} has the weight {one!r}; it must be a number.")
    return [float(one) for one in (row if len(row) == count else row * count)]
