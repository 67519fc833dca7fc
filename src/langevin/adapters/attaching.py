"""Deltas in their layers: one child module and one forward hook per layer, and the layer's own weights kept aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.report import paired, some
from .deltas import Delta
from .guest import Unlisted

CHILD = "adapter_deltas"
"""Name of the child module of a layer that holds its deltas."""


class Changed(dict):
    """The parameters of a layer with adapters.

    A compiled graph checks no hooks. It does check the type of this dictionary, and so notices that they came or went.
    """


class Deltas(Unlisted):
    """The deltas of one layer, by adapter, and the layer's own weights while adapters are fused into them.

    Attributes:
        live: the keys of the deltas that the hook adds, in order.
        base_weight, base_bias: the layer's own while others stand in their place.
        marks: whose weights these are, and what tells whether somebody else has changed them since.
        moved: whether the network was moved or cast since.
    """

    base_weight: Tensor | None
    base_bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.live: tuple[str, ...] = ()
        self.moved = False
        self.marks: tuple[Any, ...] = ()
        for name in ("base_weight", "base_bias"):
            self.register_buffer(name, None, persistent=False)

    def forward(self, x: Tensor, output: Tensor, layer: nn.Module) -> Tensor:
        """Return the layer's output with what the live deltas add."""
        weight, plain = (layer.weight, output) if self.base_weight is None else (self.base_weight, None)
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

    def put(self, layer: nn.Module, made: Mapping[str, Tensor]) -> None:
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
        self.moved = False
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
