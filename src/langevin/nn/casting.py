"""Weights kept in a small type and cast for every call: less memory, at the price of a cast and of rounding.

A layer is changed by its class alone: one whose `weight` and `bias` are the stored ones, cast when they are read. So
the layer keeps its names, hooks and state dict, serves several threads, and nothing is copied back after a call.

Gain and loss are those of the types: float8 holds half the bytes of bfloat16 and 3 bits of a number. Time is not
measured on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
)
"""What the documentation casts; norms and free parameters stay as they are."""
SKIPPED = ("norm",)
"""Patterns of names that are always left out, with all that is inside."""


class Cast:
    """A layer whose parameters are stored in one type and read in another."""

    _parameters: dict[str, nn.Parameter | None]
    _reading: tuple[torch.dtype, bool]

    def _read(self, name: str) -> Tensor | None:
        stored, (dtype, non_blocking) = self._parameters[name], self._reading
        return None if stored is None else stored.to(dtype, non_blocking=non_blocking)

    @property
    def weight(self) -> Tensor | None:
        """The weight in the type of the computation."""
        return self._read("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias in the type of the computation."""
        return self._read("bias")


@cache
def cast_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a class of layers with its parameters cast when they are read."""
    return type(f"Cast{cls.__name__}", (Cast, cls), {"__doc__": cls.__doc__, "__module__": __name__})


def castable(
    network: nn.Module, patterns: Sequence[str], classes: tuple[type[nn.Module], ...], path: str = ""
) -> Iterator[nn.Module]:
    """Yield the layers of a network whose weights can be cast, without those of skipped names and classes."""
    if isinstance(network, classes) or any(re.search(pattern, path) for pattern in patterns):
        return
    weight = network._parameters.get("weight")
    if isinstance(network, LAYERS) and type(weight) is nn.Parameter and weight.is_floating_point():
        yield network
    for name, child in network.named_children():
        yield from castable(child, patterns, classes, f"{path}.{name}" if path else name)


def check_weights(network: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Raise ConfigError unless layers of a network have weights of their own, which may be rounded."""
    what = type(network).__name__
    if any(isinstance(module, Cast) for module in network.modules()):
        raise ConfigError(f"{what} casts its weights already; call `disable_layerwise_casting` first.")
    if any(name.endswith("base_weight") for name, _ in network.named_buffers()):
        raise ConfigError(f"Adapters are fused into {what}; call `unfuse_lora` first, and use them unfused.")
    if any(type(layer).__module__.partition(".")[0] == __name__.partition(".")[0] for layer in layers):
        raise ConfigError(f"`optimize` changed layers of {what}; call `deoptimize` first, and `optimize` after this.")
    if network.training and any(p.requires_grad for layer in layers for p in layer.parameters(recurse=False)):
        raise ConfigError(f"{what} is being trained; call `eval()`, or `requires_grad_(False)` where adapters learn.")


def enable(
    network: nn.Module,
    storage: torch.dtype,
    compute: torch.dtype,
    *,
    patterns: Sequence[str] | None = None,
    classes: Sequence[type[nn.Module]] | None = None,
    non_blocking: bool = False,
) -> None:
    """Store the weights of a network's layers in one type and compute in another; see `SmallerMixin`."""
    types = (("storage", storage, 8, torch.float8_e4m3fn), ("compute", compute, 16, torch.bfloat16))
    for name, dtype, least, such in types:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize * 8 < least:
            raise ConfigError(f"{name}_dtype is {dtype}; give a floating-point type of {least} bits or more: {such}.")
    layers = list(castable(network, (*(patterns or ()), *SKIPPED), tuple(classes or ())))
    check_weights(network, layers)
    if not layers:
        raise ConfigError(f"{type(network).__name__} has no layer to cast; skip fewer.")
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(storage)
        vars(layer)["_reading"] = (compute, non_blocking)
        layer.__class__ = cast_class(type(layer))


def disable(network: nn.Module) -> None:
    """Store the weights of a network in the type that it computes in; what was rounded stays so."""
    for layer in network.modules():
        if isinstance(layer, Cast):
            dtype, _ = vars(layer).pop("_reading")
            layer.__class__ = type(layer).__bases__[1]
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
