"""Linear layers and convolutions that a CPU computes faster, with the weights, names and hooks that they have.

A layer is changed by its class alone, and back; nothing is added to the network. Under gradients, autocast, or on
another device the changed layers compute as torch's do.

Gain of float32 products on one core of an AVX-512 CPU without bfloat16 instructions: a network of the size of Stable
Diffusion 1.5 at 512 pixels takes 15.7 s per step with guidance in place of 47.3 s in bfloat16, and is 0.011 from
float32 either way; `benchmarks.products` measures it. Loss: what the layer that computes reads and writes is in
float32 meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.compiled import looked_through
from ..nn.norm import hooked
from . import processor

FEWEST_ROWS = 16
"""Rows of a product from which on converting the weights to float32 pays."""


def plain(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether a layer has to compute as torch's own does."""
    if torch.jit.is_tracing() or torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
        return True
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *layer._parameters.values())):
        return True
    return type(layer.weight) is not nn.Parameter or x.dtype != layer.weight.dtype


def packable(layer: nn.Conv2d, x: Tensor) -> bool:
    """Tell whether oneDNN computes a convolution of `x`, and changes of the weight can be noticed."""
    return x.dtype in processor.PACKED and x.dim() == 4 and x.numel() > 0 and not layer.weight.is_inference()


def wide(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor in float32."""
    return None if tensor is None else tensor.float()


class WideLinear(nn.Linear):
    """A linear layer that multiplies in float32 where the processor has no instructions for its type."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), rounded once."""
        if x.dtype not in processor.CONVERTED or plain(self, x) or x.numel() < FEWEST_ROWS * self.in_features:
            return super().forward(x)
        return F.linear(x.float(), self.weight.float(), wide(self.bias)).to(x.dtype)


class WideConv2d(nn.Conv2d):
    """A convolution that multiplies in float32 where the processor has no instructions for its type."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W'), rounded once."""
        if x.dtype not in processor.CONVERTED or plain(self, x):
            return super().forward(x)
        return self._conv_forward(x.float(), self.weight.float(), wide(self.bias)).to(x.dtype)


class Packing(NamedTuple):
    """A convolution's weight in the order in which oneDNN reads it.

    Attributes:
        source: the weight that it was made of, kept so that no other takes its address.
        mark: what tells whether that has changed since.
    """

    source: Tensor
    mark: tuple
    weight: Tensor

    def __reduce__(self) -> tuple:
        """A copy of a layer packs for itself."""
        return type(None), ()

    def __deepcopy__(self, memo: dict) -> None:
        return None


class PackedConv2d(WideConv2d):
    """A convolution that keeps its weight in the order in which oneDNN reads it, instead of ordering it at every call.

    The packing takes as much memory as the weight, in float32 where the processor converts the weight's type. It is
    made anew when the weight was replaced or changed in place; a change that torch does not count, through `.data` or
    NumPy, is seen after `unpack`, which the calls of pipelines end with.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        if looked_through() or plain(self, x) or not packable(self, x):
            return super().forward(x)
        dtype = torch.float32 if x.dtype in processor.CONVERTED else x.dtype
        return torch.ops.mkldnn._convolution_pointwise(x.to(dtype), *self._given(x, dtype), "none", [], "").to(x.dtype)

    def added(self, x: Tensor, straight: Tensor, own: bool) -> Tensor | None:
        """Return the convolution of `x` with `straight` added before it is rounded, or None where torch is to add.

        Args:
            own: `straight` may be overwritten.
        """
        native = straight.dtype == x.dtype and x.dtype not in processor.CONVERTED
        if not native or looked_through() or plain(self, x) or not packable(self, x) or hooked(self):
            return None
        given: tuple[Any, ...] = (*self._given(x, x.dtype), "add", 1.0, None, [], None)
        if own and straight.is_contiguous(memory_format=torch.channels_last):
            return torch.ops.mkldnn._convolution_pointwise_.binary(straight, x, *given)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, straight, *given)

    def _given(self, x: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._packed(x, dtype), bias, self.padding, self.stride, self.dilation, self.groups

    def _packed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the packed weight, for inputs of about the size of `x`."""
        weight = self.weight
        kept: Packing | None = self.__dict__.get("_packing")
        mark = (weight.data_ptr(), weight._version, weight.stride(), dtype)
        if kept is None or kept.mark != mark:
            source = weight.detach()
            sizes = (self.padding, self.stride, self.dilation, self.groups, x.shape)
            packed = torch.ops.mkldnn._reorder_convolution_weight(source.to(dtype), *sizes)
            kept = self.__dict__["_packing"] = Packing(source, mark, packed)
        return kept.weight

    def _apply(self, fn, recurse=True):
        unpack(self)
        return super()._apply(fn, recurse)


WIDE: dict[type, type] = {nn.Linear: WideLinear, nn.Conv2d: WideConv2d}
PACKED: dict[type, type] = {nn.Conv2d: PackedConv2d, WideConv2d: PackedConv2d}
ORIGINAL: dict[type, type] = {
    **{ours: original for original, ours in WIDE.items()},
    PackedConv2d: nn.Conv2d,
}
"""Class of ours -> torch's or the network's own; `products` adds to it."""


def ordinary(layer: nn.Module) -> bool:
    """Tell whether a layer's forward is that of its class and its weight an ordinary parameter."""
    return "forward" not in vars(layer) and type(layer._parameters.get("weight")) is nn.Parameter


def widen(network: nn.Module) -> list[nn.Module]:
    """Let the layers of a network whose type the processor converts multiply in float32, and return those changed."""
    found = [module for module in network.modules() if type(module) in WIDE and ordinary(module)]
    return change([layer for layer in found if cast(Tensor, layer.weight).dtype in processor.CONVERTED], WIDE)


def pack(network: nn.Module) -> list[nn.Module]:
    """Let the convolutions of a network keep packed weights, and return those changed."""
    found = [m for m in network.modules() if type(m) in PACKED and ordinary(m)]
    return change([m for m in found if m.padding_mode == "zeros" and not isinstance(m.padding, str)], PACKED)


def change(layers: list[nn.Module], classes: dict[type, type]) -> list[nn.Module]:
    """Give layers the classes that stand for theirs, and return them."""
    for layer in layers:
        layer.__class__ = classes[type(layer)]
    return layers


def restore(layers: Iterable[nn.Module], classes: Iterable[type] | None = None) -> None:
    """Give layers of these classes of ours, or of all of them, their own back."""
    wanted = set(ORIGINAL if classes is None else classes)
    for layer in layers:
        if type(layer) in wanted:
            unpack(layer)
            layer.__class__ = ORIGINAL[type(layer)]


def unpack(layer: nn.Module) -> None:
    """Forget a packed weight, whose memory is free then; it is made again when it is needed."""
    layer.__dict__.pop("_packing", None)


_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_lock = threading.Lock()


Change = Callable[[nn.Module], list[nn.Module]]
"""Changes layers of a network and returns those that were changed, such as `widen`."""


@contextmanager
def lent(changes: Iterable[tuple[nn.Module, Change]]) -> Iterator[None]:
    """Context in which layers of networks are changed.

    Threads that use a network at the same time share it; the last one to leave changes it back.
    """
    changes = tuple(changes)
    with _lock:
        _users.update(dict.fromkeys((layer for network, change in changes for layer in change(network)), 0))
        inside = dict.fromkeys(module for network, _ in changes for module in network.modules())
        mine = [module for module in inside if module in _users]
        for layer in mine:
            _users[layer] += 1
    try:
        yield
    finally:
        with _lock:
            for layer in mine:
                _users[layer] -= 1
            idle = [layer for layer in mine if not _users[layer]]
            restore(idle)
            for layer in idle:
                del _users[layer]


def in_use(network: nn.Module) -> bool:
    """Tell whether a thread is inside `lent` with a network."""
    return any(module in _users for module in network.modules())
