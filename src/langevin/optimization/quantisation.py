"""Weights of linear layers rounded to eight bits by torchao, chosen by name; asked for, since it changes the picture.

A kind that rounds weights alone saves memory on every device. `float8dq_e4m3_row` also rounds what goes into a layer,
each row by a scale of its own, so that the product itself is one of 8-bit numbers, which CUDA devices from compute
capability 8.9 on have instructions for.

Gain: a quarter of float32's bytes or half of bfloat16's for these layers; time is not measured, for want of a GPU:
`python -m benchmarks.kernels --float8` measures it. Loss: two linear layers with random weights, of 64 to 96 to 24
numbers, are off by 0.5 % (int8wo), 3.3 % (float8wo) and 4.8 % (float8dq_e4m3_row) in relative L2 norm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError, did_you_mean
from ..core.imports import require
from ..nn.casting import check_weights
from ..nn.compiled import bare

CAPABILITY = (8, 9)
"""Compute capability of CUDA devices from which on they multiply float8."""
MULTIPLE = 16
"""Float8 products need widths that are multiples of this."""


@dataclass(frozen=True)
class Kind:
    """One way to round.

    Attributes:
        config: makes torchao's description of it, of the module `torchao.quantization`.
        dynamic: inputs are rounded too, so the device has to multiply float8.
    """

    config: Callable[[Any], Any]
    dynamic: bool = False


KINDS = {
    "int8wo": Kind(lambda ao: ao.Int8WeightOnlyConfig()),
    "float8wo": Kind(lambda ao: ao.Float8WeightOnlyConfig()),
    "float8dq_e4m3_row": Kind(
        lambda ao: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), set_inductor_config=False),
        dynamic=True,
    ),
}
"""Documented short names of torchao's roundings -> what they are."""


def quantise(network: nn.Module, kind: str, *, skip: Sequence[str] = ()) -> list[str]:
    """Round the weights of a network's linear layers in place, and return the names of the layers.

    It cannot be undone: load the network anew. Adapters work unfused. `save_pretrained` refuses such a network.

    Args:
        network: on the device that it computes on.
        kind: "int8wo" or "float8wo", weights alone; "float8dq_e4m3_row", inputs too, in bfloat16 on CUDA devices from
            compute capability 8.9 on. Layers whose widths are no multiples of 16 are then left as they are.
        skip: regular expressions of names to leave out.

    Raises:
        ConfigError: for an unknown kind, a device or type of weights that it is not for, a network without such layers,
            one that is compiled, being trained, cast or optimized, or one with fused adapters.
        MissingDependencyError: without torchao.
    """
    if kind not in KINDS:
        raise ConfigError(f"no kind of quantisation {kind!r}{did_you_mean(kind, KINDS)}")
    if bare(network) is not network:
        raise ConfigError("A compiled network is not quantised: quantise it before it is compiled.")
    chosen = KINDS[kind]
    found = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and fits(layer, chosen) and not any(re.search(p, name) for p in skip)
    }
    if not found:
        raise ConfigError(f"{type(network).__name__} has no linear layer that {kind!r} could round; skip fewer.")
    check_weights(network, list(found.values()))
    if chosen.dynamic:
        check_device(kind, next(iter(found.values())).weight)
    ao = require("torchao.quantization", why=f"quantisation by {kind!r}", extra="quantization")
    taken = set(map(id, found.values()))
    ao.quantize_(network, chosen.config(ao), filter_fn=lambda layer, name: id(layer) in taken)
    return list(found)


def fits(layer: nn.Linear, kind: Kind) -> bool:
    """Tell whether a layer has a weight to round, of a shape that the kind can multiply."""
    whole = layer.in_features % MULTIPLE == 0 == layer.out_features % MULTIPLE
    return type(layer._parameters.get("weight")) is nn.Parameter and (whole or not kind.dynamic)


def check_device(kind: str, weight: torch.Tensor) -> None:
    """Raise ConfigError unless float8 numbers can be multiplied where the weight is, and as torchao does it."""
    instead = "'float8wo' rounds weights alone, on every device."
    if weight.device.type != "cuda":
        what = f"{kind!r} multiplies float8 on a CUDA device, and the network is on {weight.device.type}"
        raise ConfigError(f"{what}; move it there with `to('cuda')` first. {instead}")
    has = torch.cuda.get_device_capability(weight.device)
    if has < CAPABILITY:
        least, there = (".".join(map(str, one)) for one in (CAPABILITY, has))
        raise ConfigError(f"{kind!r} needs compute capability {least}, and this device has {there}. {instead}")
    if weight.dtype != torch.bfloat16:
        raise ConfigError(f"{kind!r} takes networks in torch.bfloat16, not {weight.dtype}; use `to(torch.bfloat16)`.")
