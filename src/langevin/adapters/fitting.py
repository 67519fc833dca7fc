"""From the tensors of a file to the delta of a layer: what fits is brought into its layout, what does not is named."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, check_choice, check_known
from ..weights.dialects.parts import ALGORITHMS, Parts
from .deltas import OFT, Delta, DoRA, Full, LoHa, LoKr, LoRA, Shapes
from .layers import PRODUCTS, Shape, kind, plain_weight, weight_shape

CLASSES: dict[str, type[Delta]] = {cls.algorithm: cls for cls in (LoRA, LoHa, LoKr, OFT, Full)}
BIASLESS = ("RMS norm", "embedding")
"""Kinds of layer that never have a bias."""


def build(
    parts: Parts,
    layer: nn.Module,
    *,
    path: str = "",
    dtype: torch.dtype | None = None,
    trainable: bool = False,
    target_rank: int | None = None,
) -> Delta:
    """Return the delta of a layer, on its device.

    Args:
        path: the layer's name, for messages.
        dtype: of the delta's tensors; None keeps their values exactly: the layer's dtype if it holds them, else theirs.
        trainable: the tensors are copies and require gradients.
        target_rank: pads the factors of a LoRA with zeros, so that one of this rank can take their place.

    Raises:
        ConfigError: the tensors do not fit the layer or each other, or the layer is of a kind that cannot change.
    """
    where = f"layer {path!r} ({type(layer).__name__})"
    cls = class_for(parts, layer, where)
    shape, stored = weight_shape(layer), {name: tuple(tensor.shape) for name, tensor in parts.tensors.items()}
    canonical, rank = fitted(cls, stored, shape, where)
    weight, device = plain_weight(layer), device_for(layer, next(iter(parts.tensors.values())))
    owned = trainable or target_rank is not None

    def ready(name: str) -> Tensor:
        tensor = parts.tensors[name]
        target = dtype or (tensor.dtype if weight is None else exact(tensor.dtype, weight.dtype))
        return tensor.detach().to(device=device, dtype=target, copy=owned).reshape(canonical[name])

    tensors = {name: ready(name) for name in parts.tensors if name != "magnitude"}
    if target_rank is not None and cls.padded:
        tensors = padded(cls, tensors, rank, target_rank, where)
    delta = cls(tensors, parts.alpha, shape, rank, stored)
    if "magnitude" in parts.tensors:
        delta = DoRA(delta, ready("magnitude"), stored["magnitude"])
    return delta.requires_grad_(True) if trainable else delta


def class_for(parts: Parts, layer: nn.Module, where: str) -> type[Delta]:
    """Return the class of an algorithm, or raise ConfigError if the layer or the names of the tensors do not fit it."""
    algorithm, names, layer_kind = parts.algorithm, set(parts.tensors), kind(layer)
    check_choice("the algorithm of an adapter", algorithm, CLASSES)
    cls = CLASSES[algorithm]
    if layer_kind is None or (cls is not Full and layer_kind not in PRODUCTS):
        fit = "linear layers and convolutions" if cls is not Full else "linear layers, convolutions, norms, embeddings"
        raise ConfigError(f"{where}: {algorithm!r} fits {fit}, not this one.")
    check_known(f"{algorithm!r} on {where}", parts.tensors, ALGORITHMS[algorithm])
    if not any(names.issuperset(needed) for needed in cls.required):
        sets = " or ".join(", ".join(needed) for needed in cls.required)
        raise ConfigError(f"{where}: {algorithm!r} needs {sets}; there is {', '.join(parts.tensors) or 'nothing'}.")
    if "diff_bias" in names and layer_kind in BIASLESS:
        raise ConfigError(f"{where} has no bias and no place for one: leave 'diff_bias' out.")
    if plain_weight(layer) is None and (cls.needs_weight or "magnitude" in names):
        raise ConfigError(f"{where} is quantised; DoRA and OFT change the layer's own weight: dequantise it first.")
    return cls


def device_for(layer: nn.Module, tensor: Tensor) -> torch.device:
    """Return the device of a layer, or the tensor's that is to lie there if the layer has no values."""
    weight = layer.weight
    return weight.device if isinstance(weight, Tensor) and weight.device.type != "meta" else tensor.device


def exact(tensor: torch.dtype, layer: torch.dtype) -> torch.dtype:
    """Return the layer's dtype if it holds every value of the tensor's, else the tensor's own."""
    return layer if tensor.itemsize == 1 or torch.promote_types(tensor, layer) == layer else tensor


def fitted(cls: type[Delta], stored: Shapes, shape: Shape, where: str) -> tuple[dict[str, Shape], int]:
    """Return the shapes of the tensors in the layout of the layer, and the rank; axes of length 1 are not compared."""
    try:
        wanted, rank = cls.wanted(stored, shape)
    except (ConfigError, IndexError) as error:
        listed = ", ".join(f"{name} {list(size)}" for name, size in stored.items())
        raise ConfigError(f"{where} with the weight {list(shape)}: the file has {listed}; {error}.") from None
    if "magnitude" in stored:
        wanted["magnitude"] = magnitude_shape(stored["magnitude"], shape)
    for name, size in stored.items():
        if name not in wanted:
            raise ConfigError(f"{where}: {name!r} has no meaning without the tensors that it belongs to.")
        if [n for n in size if n != 1] != [n for n in wanted[name] if n != 1]:
            raise ConfigError(
                f"{where} with the weight {list(shape)}: {name!r} has the shape {list(size)} in the file and needs "
                f"{list(wanted[name])}. The adapter was made for another model."
            )
    return {name: wanted[name] for name in stored}, rank


def magnitude_shape(stored: Shape, shape: Shape) -> Shape:
    """Return (out, 1, ...) or (1, in, 1, ...), whichever a magnitude is.

    (out,) and (out, 1, ...) hold one number for each row; (1, in, ...) one for each column, as in LyCORIS and in
    kohya's scripts; PEFT's (1, out, 1, 1) of a convolution can be told from it by its length alone.
    """
    ones = (1,) * (len(shape) - 2)
    columns = len(stored) > 1 and stored[0] == 1 and stored[1] == shape[1] and (shape[0] != 1 or shape[1] != 1)
    return (1, shape[1], *ones) if columns else (shape[0], 1, *ones)


def padded(cls: type[Delta], tensors: dict[str, Tensor], rank: int, target: int, where: str) -> dict[str, Tensor]:
    """Return the tensors with zeros up to the rank `target`, in storage of their own."""
    if rank > target:
        raise ConfigError(f"{where}: the rank {rank} is larger than target_rank={target}; reserve at least {rank}.")
    made = {}
    for name, tensor in tensors.items():
        axes = cls.padded.get(name, ())
        size = [target if i in axes else n for i, n in enumerate(tensor.shape)]
        made[name] = tensor.new_zeros(size)
        made[name][tuple(slice(n) for n in tensor.shape)] = tensor
    return made
