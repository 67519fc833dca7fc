"""From the lists of a UNet configuration to one `Level` per block, with the checks that a list needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ...core.errors import ConfigError, did_you_mean
from .blocks import DOWN_KINDS, MID_KINDS, UP_KINDS, Kind, Level


class Layout(NamedTuple):
    """The levels of a UNet: going down, in the middle (None = nothing there), going up."""

    down: tuple[Level, ...]
    mid: Level | None
    up: tuple[Level, ...]


def per_block(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """Return one value per block from a single value or a list.

    Raises:
        ConfigError: the list has another length than there are blocks.
    """
    if not isinstance(value, (list, tuple)):
        return (value,) * count
    if len(value) != count:
        raise ConfigError(f"{name} has {len(value)} values, but down_block_types names {count} blocks: {tuple(value)}")
    return tuple(value)


def block_kind(option: str, name: str, kinds: Mapping[str, Kind], usable: Callable[[Kind], bool]) -> Kind:
    """Return what a block name stands for; it may have its historical prefix.

    Raises:
        ConfigError: no such block, or none that the model can use.
    """
    short = name.removeprefix("UNetRes")
    kinds = {known: kind for known, kind in kinds.items() if usable(kind)}
    if short not in kinds:
        raise ConfigError(f"{option} names {name!r}, which is no block of this model{did_you_mean(name, kinds)}")
    return kinds[short]


def depths(value: Any, layers: int) -> tuple[int, ...]:
    """Return the number of transformer blocks per layer of one block."""
    if isinstance(value, (list, tuple)):
        if len(value) < layers:
            raise ConfigError(f"transformer_layers_per_block gives {len(value)} depths for a block of {layers} layers")
        return tuple(value)
    return (value,) * layers


def lay_out(
    *,
    usable: Callable[[Kind], bool],
    down_block_types: Sequence[str],
    mid_block_type: str | None,
    up_block_types: Sequence[str] | None = None,
    block_out_channels: Sequence[int],
    layers_per_block: int | Sequence[int],
    attention_head_dim: Any = None,
    num_attention_heads: Any = None,
    cross_attention_dim: Any = None,
    transformer_layers_per_block: Any = 1,
    reverse_transformer_layers_per_block: Any = None,
    only_cross_attention: Any = False,
    mid_only_cross_attention: bool = False,
    mid_layers: int = 1,
) -> Layout:
    """Read the lists of a configuration.

    `usable` tells which kinds of block the model can run. `attention_head_dim` is the number of heads for transformer
    blocks and the width of a head for the other kinds, as in published configurations, unless `num_attention_heads`
    gives the former. Without `up_block_types` there is no way up.

    Raises:
        ConfigError: a block name is unknown or a list has the wrong length.
    """
    count = len(down_block_types)
    if up_block_types is not None and len(up_block_types) != count:
        raise ConfigError(f"up_block_types names {len(up_block_types)} blocks and down_block_types names {count}")
    widths = per_block("block_out_channels", tuple(block_out_channels), count)
    layers = per_block("layers_per_block", layers_per_block, count)
    head_dims = per_block("attention_head_dim", attention_head_dim, count)
    heads = head_dims
    if num_attention_heads is not None:
        heads = per_block("num_attention_heads", num_attention_heads, count)
    context = per_block("cross_attention_dim", cross_attention_dim, count)
    only_cross = per_block("only_cross_attention", only_cross_attention, count)
    down_depths = per_block("transformer_layers_per_block", transformer_layers_per_block, count)
    up_depths = down_depths[::-1]
    if reverse_transformer_layers_per_block is not None:
        up_depths = per_block("reverse_transformer_layers_per_block", reverse_transformer_layers_per_block, count)
    elif up_block_types is not None and any(isinstance(depth, (list, tuple)) for depth in down_depths):
        raise ConfigError("nested transformer_layers_per_block needs reverse_transformer_layers_per_block")

    def level(i: int, kind: Kind, channels_in: int, layers_here: int, depth: Any, **more: Any) -> Level:
        given: dict[str, Any] = {
            "kind": kind,
            "channels_in": channels_in,
            "channels_out": widths[i],
            "layers": layers_here,
            "heads": heads[i] or 1,
            "head_dim": head_dims[i],
            "context_channels": context[i],
            "transformer_layers": depths(depth, layers_here),
            "only_cross_attention": bool(only_cross[i]),
            "deepest": i == count - 1,
        }
        return Level(**{**given, **more})

    down, up = [], []
    for i in range(count):
        kind = block_kind("down_block_types", down_block_types[i], DOWN_KINDS, usable)
        down.append(level(i, kind, widths[max(i - 1, 0)], layers[i], down_depths[i], resample=i < count - 1))
    for j, written in enumerate(up_block_types or ()):
        i = count - 1 - j
        kind = block_kind("up_block_types", written, UP_KINDS, usable)
        skip = widths[max(i - 1, 0)]
        above = widths[min(i + 1, count - 1)]
        up.append(level(i, kind, above, layers[i] + 1, up_depths[j], resample=i > 0, channels_skip=skip))
    if len({level.kind.adaptive for level in (*down, *up)}) > 1:
        raise ConfigError("blocks named K... go only with blocks named K..., on the way down and up")
    mid = None
    if mid_block_type is not None:
        kind = block_kind("mid_block_type", mid_block_type, MID_KINDS, usable)
        more = {"only_cross_attention": mid_only_cross_attention}
        mid = level(count - 1, kind, widths[-1], mid_layers, down_depths[-1], **more)
    return Layout(tuple(down), mid, tuple(up))
