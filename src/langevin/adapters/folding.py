"""Adapters fused into a layer: the weights that it has with them, summed and checked, and put nowhere yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, NonFiniteError
from .attaching import CHILD, delta_in, holder
from .deltas import Delta, is_plain, wide
from .layers import plain_weight

BLOCK = 2**17
"""Numbers of a block of rows that stays in the cache."""


def own_weight(layer: nn.Module) -> Tensor | None:
    """Return a layer's weight without the adapters that are fused into it; None if it is quantised."""
    weight = plain_weight(layer)
    return weight if weight is None or CHILD not in layer._modules else holder(layer).own(layer, "weight")


def folded(layer: nn.Module, fused: Mapping[str, float], path: str) -> dict[str, Tensor]:
    """Return the layer's weight and bias with adapters of these weights; neither where nothing changes."""
    terms = [(delta_in(layer, name), weight) for name, weight in fused.items() if weight]
    if not terms:
        return {}
    weight = own_weight(layer)
    if weight is None:
        raise ConfigError(f"The layer {path!r} is quantised: adapters cannot be fused into it. Use them unfused.")
    made = {"weight": changed(weight, terms)}
    biases = [(bias, scale) for delta, scale in terms if (bias := delta.dense_bias()) is not None]
    if biases:
        bias = holder(layer).own(layer, "bias")
        if bias is None:
            raise ConfigError(f"The layer {path!r} has no bias, and the adapter adds one: use it unfused.")
        made["bias"] = sum((term * scale for term, scale in biases), wide(bias)).to(bias.dtype)
    return made


def changed(weight: Tensor, terms: Sequence[tuple[Delta, float]]) -> Tensor:
    """Return a weight plus weighted differences, in new storage: summed in float32 or wider and rounded once.

    Sums of LoRAs on a CPU go through a block of rows that stays in the cache.
    """
    wide_dtype = torch.promote_types(weight.dtype, torch.float32)
    thin = weight.device.type == "cpu" and weight.is_contiguous() and all(is_plain(delta) for delta, _ in terms)
    if not thin or weight.dtype == wide_dtype:
        total = weight.to(wide_dtype, copy=True)
        for delta, scale in terms:
            delta.accumulate_(total, weight, scale)
        return total.to(weight.dtype)
    up = torch.cat([delta.tensors["up"].flatten(1).to(wide_dtype) for delta, _ in terms], 1)
    down = torch.cat([delta.tensors["down"].flatten(1).to(wide_dtype) * delta.unit * scale for delta, scale in terms])
    made = torch.empty_like(weight)
    rows = max(1, BLOCK // down.shape[1])
    buffer = torch.empty(min(rows, len(weight)), down.shape[1], dtype=wide_dtype)
    for source, factor, target in zip(
        weight.flatten(1).split(rows), up.split(rows), made.flatten(1).split(rows), strict=True
    ):
        block = buffer[: len(source)].copy_(source)
        target.copy_(block.addmm_(factor, down))
    return made


def summary(tensor: Tensor) -> Tensor:
    """Return one number that is finite only if all are, but for sums that overflow: the cheapest for the dtype."""
    return tensor.sum() if tensor.element_size() > 2 else torch.stack(torch.aminmax(tensor)).float().sum()


def check_finite(sums: Mapping[str, list[Tensor]], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise NonFiniteError for the first layer with a value that is not finite; reads the device once."""
    flat = [total for totals in sums.values() for total in totals]
    if not flat or bool(torch.stack([total.isfinite().to(flat[0].device) for total in flat]).all()):
        return
    for path in sums:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors[path].values()):
            raise NonFiniteError(
                f"Fusing gives the layer {path!r} weights that are not finite: the adapter is damaged, or its weight "
                "is too large for the dtype. Nothing was changed.",
                module=path,
            )
