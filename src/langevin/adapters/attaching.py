"""Deltas in their layers: one child module and one forward hook per layer, and what fusing makes of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, NonFiniteError
from ..core.report import paired, some
from .deltas import Delta, Unlisted, is_plain, wide
from .layers import plain_weight

CHILD = "adapter_deltas"
"""Name of the child module of a layer that holds its deltas."""
BLOCK = 2**17
"""Numbers of a block of rows that stays in the cache."""


class Changed(dict):
    """The parameters of a layer with adapters.

    A compiled graph checks no hooks. It does check the type of this dictionary, and so notices that they came or went.
    """


class Deltas(Unlisted):
    """The deltas of one layer, by adapter, and the layer's own weights while adapters are fused into them.

    Attributes:
        live: the keys of the deltas that the hook adds, in order.
        fused: adapter -> weight with which it is part of the layer's present weights.
    """

    base_weight: Tensor | None
    base_bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.live: tuple[str, ...] = ()
        self.fused: dict[str, float] = {}
        self.folded = self.moved = False
        self.marks: tuple[Any, ...] = ()
        for name in ("base_weight", "base_bias"):
            self.register_buffer(name, None, persistent=False)

    def forward(self, x: Tensor, output: Tensor, layer: nn.Module) -> Tensor:
        """Return the layer's output with what the live deltas add."""
        weight = self.base_weight if self.folded else layer.weight
        plain = None if self.folded else output
        for key in self.live:
            output = output + self._modules[key](x, layer, weight, plain)  # type: ignore[misc]
        return output

    def _apply(self, fn: Callable, recurse: bool = True):
        self.moved = True
        return super()._apply(fn, recurse)

    def tell(self, weights: Mapping[str, float]) -> None:
        """Make these deltas the live ones, key -> weight; other layers' are left out."""
        self.live = tuple(key for key in weights if key in self._modules)
        for key in self.live:
            cast(Delta, self._modules[key]).weigh(weights[key])

    def own(self, layer: nn.Module, name: str) -> Tensor | None:
        """Return the layer's own weight or bias, whether or not adapters are fused."""
        kept = self._buffers[f"base_{name}"]
        value = getattr(layer, name, None)
        return kept if kept is not None else value.data if isinstance(value, Tensor) else None

    def put(self, layer: nn.Module, made: Mapping[str, Tensor], fused: Mapping[str, float]) -> None:
        """Make these tensors the layer's weights, and its own again where there are none."""
        for name in ("weight", "bias"):
            own, parameter = self.own(layer, name), getattr(layer, name, None)
            if parameter is None or own is None:
                continue
            if name in made:
                parameter.data = made[name]
                self._buffers[f"base_{name}"] = own
            elif self._buffers[f"base_{name}"] is not None:
                parameter.data = own
                self._buffers[f"base_{name}"] = None
        self.fused, self.folded, self.moved = dict(fused), bool(made), False
        self.marks = (id(self), *(mark(layer, name) for name in made))

    def touched(self, layer: nn.Module) -> bool:
        """Tell whether somebody else has changed the weights that adapters are fused into."""
        if not self.marks or self.marks[0] != id(self):  # a copy of a network has tensors of its own
            return False
        for name, parameter, version, address in self.marks[1:]:
            now = getattr(layer, name, None)
            if now is not parameter or now._version != version or (now.data_ptr() != address and not self.moved):
                return True
        return False


def mark(layer: nn.Module, name: str) -> tuple[str, Tensor, int, int]:
    """Return what tells whether a weight was changed."""
    parameter = getattr(layer, name)
    return name, parameter, parameter._version, parameter.data_ptr()


def holder(layer: nn.Module) -> Deltas:
    """Return the deltas of a layer that has some."""
    return cast(Deltas, layer._modules[CHILD])


def add_deltas(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """The forward hook of a layer with adapters."""
    x = args[0] if args else next(iter(kwargs.values()))
    return holder(layer)(x, output, layer)


def key_of(name: str) -> str:
    """Return an adapter's name as the name of a module, which cannot have dots."""
    return name.replace("%", "%25").replace(".", "%2E")


def found_layers(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Return the layers of a network by path, or raise ConfigError for the paths that name none."""
    layers: dict[str, nn.Module] = {}
    unknown = []
    for path in paths:
        try:
            layers[path] = model.get_submodule(path)
        except AttributeError:
            unknown.append(path)
    if unknown:
        there = [path for path, module in model.named_modules() if module._parameters and CHILD not in path]
        raise ConfigError(
            f"{type(model).__name__} has no layer {some(paired(unknown, there))}. The adapter was made for another "
            "model, or its names were read as another dialect."
        )
    if len({id(layer) for layer in layers.values()}) < len(layers):
        raise ConfigError("Two paths of the adapter name the same layer; keep one of them.")
    return layers


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


def attach(layer: nn.Module, name: str, delta: Delta) -> None:
    """Put a delta into its layer."""
    if CHILD not in layer._modules:
        layer.add_module(CHILD, Deltas())
        layer.register_forward_hook(add_deltas, with_kwargs=True)
        layer.__dict__["_parameters"] = Changed(layer._parameters)
    holder(layer)._modules[key_of(name)] = delta


def detach(layer: nn.Module, name: str) -> None:
    """Take a delta out of its layer, and all traces with the last one."""
    held, key = holder(layer), key_of(name)
    del held._modules[key]
    held.live = tuple(other for other in held.live if other != key)
    if not held._modules:
        del layer._modules[CHILD]
        layer.__dict__["_parameters"] = dict(layer._parameters)
        ours = [number for number, hook in layer._forward_hooks.items() if hook is add_deltas]
        for number in ours:
            del layer._forward_hooks[number], layer._forward_hooks_with_kwargs[number]


def delta_in(layer: nn.Module, name: str) -> Delta:
    """Return the delta that an adapter has in a layer."""
    return cast(Delta, holder(layer)._modules[key_of(name)])
