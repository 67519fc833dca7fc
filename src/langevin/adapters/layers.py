"""Layers that an adapter can change: the shape of the weight, and the layer applied with another weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Shape = tuple[int, ...]
Apply = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]

APPLY: dict[str, Apply] = {
    "linear": lambda layer, x, weight, bias: F.linear(x, weight, bias),
    "convolution": lambda layer, x, weight, bias: layer._conv_forward(x, weight, bias),
    "layer norm": lambda layer, x, weight, bias: F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps),
    "group norm": lambda layer, x, weight, bias: F.group_norm(x, layer.num_groups, weight, bias, layer.eps),
    "RMS norm": lambda layer, x, weight, bias: F.rms_norm(x, layer.normalized_shape, weight, layer.eps),
    "embedding": lambda layer, x, weight, bias: F.embedding(x, weight, layer.padding_idx),
}
"""Kind of layer -> the layer with another weight and bias; linear in the two."""

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    _ConvNd: "convolution",
    nn.LayerNorm: "layer norm",
    nn.GroupNorm: "group norm",
    nn.RMSNorm: "RMS norm",
    nn.Embedding: "embedding",
}
PRODUCTS = ("linear", "convolution")
"""Kinds of layer that algorithms other than `full` fit."""
REFUSED = (_ConvTransposeNd, NonDynamicallyQuantizableLinear)
"""Looks like one of `KINDS` and is not: another layout, or a layer whose weight is read and that is never called."""
POINTWISE = (F.conv1d, F.conv2d, F.conv3d)


def kind(layer: nn.Module) -> str | None:
    """Return the key of `APPLY` for a layer, or None if no adapter can change it.

    Quantised layers count as linear when they say how many features they map to how many.
    """
    if isinstance(layer, REFUSED):
        return None
    for cls, name in KINDS.items():
        if isinstance(layer, cls):
            return name
    sizes = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    return "linear" if all(isinstance(size, int) for size in sizes) else None


def weight_shape(layer: nn.Module) -> Shape:
    """Return the shape of a layer's weight as it is before any quantisation."""
    if kind(layer) == "linear":
        return (int(layer.out_features), int(layer.in_features))  # type: ignore[arg-type]
    weight = layer.weight
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()


def plain_weight(layer: nn.Module) -> nn.Parameter | None:
    """Return the layer's weight if it is an ordinary parameter of at least 16 bits; None if it is quantised."""
    weight = layer.weight
    plain = type(weight) is nn.Parameter and weight.is_floating_point() and weight.element_size() > 1
    return weight if plain else None  # type: ignore[return-value]


def applied(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what the layer would give with another weight and bias, cast to the dtype of `x`."""
    name = kind(layer)
    dtype = weight.dtype if name == "embedding" else x.dtype
    return APPLY[str(name)](layer, x, weight.to(dtype), None if bias is None else bias.to(dtype))


def on_channels(layer: nn.Module, vector: Tensor, y: Tensor) -> Tensor:
    """Return a vector of one number per output channel so that it broadcasts over an output of the layer."""
    behind = 0
    if kind(layer) == "convolution":
        behind = len(layer.kernel_size)  # type: ignore[arg-type]
    elif kind(layer) == "group norm":
        behind = y.dim() - 2
    return vector.reshape(-1, *(1 for _ in range(behind))).to(y.dtype)


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x` mapped by a convolution whose kernel is one point."""
    return POINTWISE[weight.dim() - 3](x, weight)


def ungrouped(layer: nn.Module) -> bool:
    """Tell whether every output channel of the layer sees every input channel."""
    return getattr(layer, "groups", 1) == 1
