"""What makes a network faster without changing what it computes, chosen by device and type of weights, and undone.

A step is one such measure. To add one is to write a class as `Step` says and to put it into `STEPS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from ..core import native
from ..core.errors import ConfigError, check_choice
from ..nn.compiled import bare, compiled
from . import chosen, heap, layers, processor, products
from .chosen import Native
from .fused import Fused
from .graphs import Replayed
from .heap import KeptHeap
from .kept import KeptText
from .regional import CompiledBlocks

DONE = "_optimized_by"
"""Name in a network's `__dict__` of the names of the steps that were applied to it, in order."""

SPATIAL = 0.05
"""Share of a network's weights in convolutions from which on it counts as convolutional: UNets and autoencoders do, a
picture encoder with one convolution in front of its transformer does not."""


class Step(Protocol):
    """One measure that makes networks faster and leaves their outputs equal up to rounding.

    Attributes:
        name: by which the report calls it.
        gain: what it brings, what it costs, and where that was measured.
    """

    name: str
    gain: str

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether it pays for a network that computes on this device and in this type."""

    def apply(self, network: nn.Module) -> None:
        """Change the network in place."""

    def undo(self, network: nn.Module) -> None:
        """Make the network again what it was, bit for bit."""


class ChannelsLast:
    """Keeps the weights of convolutions in the order height, width, channels, which their results then have too."""

    name = "channels last"
    gain = "convolutions and attention need no reordering of feature maps; copies convolution weights once"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network is convolutional, in half precision on a GPU or unpacked on the CPU, and unordered.

        The results of packed convolutions have this order, whatever that of their weights.
        """
        unpacked = device.type == "cpu" and not Packed().applies(network, device, dtype)
        fits = unpacked or (device.type == "cuda" and dtype in processor.HALF)
        return fits and spatial(network) and (self.name in done(network) or not ordered(network))

    def apply(self, network: nn.Module) -> None:
        """Reorder the weights."""
        reorder(network, torch.channels_last)

    def undo(self, network: nn.Module) -> None:
        """Put the weights into torch's usual order."""
        reorder(network, torch.contiguous_format)


class Widened:
    """Multiplies in float32 where the processor has no instructions for the type of the weights; see `layers.widen`."""

    name = "float32 products"
    gain = "the processor converts this type at every product; in float32 it is faster and rounds once per layer"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the CPU converts the type of the weights."""
        return device.type == "cpu" and dtype in processor.CONVERTED

    def apply(self, network: nn.Module) -> None:
        """Change linear layers and convolutions."""
        layers.widen(network)

    def undo(self, network: nn.Module) -> None:
        """Change them back."""
        layers.restore(network.modules(), layers.WIDE.values())


class Multiplied:
    """Has oneDNN multiply, with bias and gate, where torch would take longer; see `products`."""

    name = "oneDNN products"
    gain = "bias and gate join their product, and no product leaves instructions of this processor unused"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network computes in such a type on the CPU, without a compiler."""
        return device.type == "cpu" and dtype in processor.JOINED and not compiled(network)

    def apply(self, network: nn.Module) -> None:
        """Change linear layers, feed-forward networks and attention."""
        products.quicken(network)

    def undo(self, network: nn.Module) -> None:
        """Change them back."""
        layers.restore(network.modules(), products.QUICK.values())


class Packed:
    """Keeps the weights of convolutions in oneDNN's own order; see `layers.PackedConv2d`."""

    name = "packed convolutions"
    gain = "weights are neither converted nor reordered at every step; a second copy of convolution weights in a call"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network is convolutional and computes on a CPU with oneDNN, without a compiler."""
        fits = device.type == "cpu" and dtype in processor.PACKED and processor.prepacks()
        return fits and not compiled(network) and spatial(network)

    def apply(self, network: nn.Module) -> None:
        """Change convolutions."""
        layers.pack(network)

    def undo(self, network: nn.Module) -> None:
        """Change them back."""
        layers.restore(network.modules(), layers.PACKED.values())


class Compiled:
    """Lets torch's compiler write the code of a network, or of the decoder of an autoencoder."""

    name = "compiled"
    gain = "fewer passes over memory; the first call, and the first at another size, compile, which takes minutes"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network is convolutional, and so runs at every step or on large pictures."""
        return spatial(network) and (self.name in done(network) or not compiled(network))

    def apply(self, network: nn.Module) -> None:
        """Have it compiled at its next call."""
        self._target(network).compile()

    def undo(self, network: nn.Module) -> None:
        """Call it as it is written again."""
        for module in self._target(network).modules():
            module._compiled_call_impl = None

    @staticmethod
    def _target(network: nn.Module) -> nn.Module:
        decoder = getattr(network, "decoder", None)
        return decoder if isinstance(decoder, nn.Module) else network


STEPS: list[Step] = [ChannelsLast(), Widened(), Multiplied(), Packed(), KeptText(), KeptHeap()]
"""The steps that `optimize` chooses from, in the order in which they are applied."""

COMPILED, BLOCKS, FUSED, NATIVE, REPLAYED = Compiled(), CompiledBlocks(), Fused(), Native(), Replayed()
"""Steps that are asked for: the first two come before the others, the rest after them."""


def all_steps() -> tuple[Step, ...]:
    """Return the steps in the order in which they are applied."""
    return COMPILED, BLOCKS, *STEPS, FUSED, NATIVE, REPLAYED


NEEDS = {
    COMPILED.name: "convolutional networks that are not compiled yet",
    BLOCKS.name: "UNets, ControlNets and autoencoders that are not compiled yet",
    FUSED.name: "UNets and autoencoders on a CUDA device that are not compiled; `to('cuda')` moves them there",
    NATIVE.name: "networks with norms or attention in bfloat16 on a CPU with AVX512-BF16",
    REPLAYED.name: "UNets on a CUDA device that are not compiled; `to('cuda')` moves them there",
}
"""What is asked for -> the networks that can take it."""


@dataclass(frozen=True)
class Change:
    """What was done to a network: its name, the name of the step, and why it was chosen."""

    network: str
    what: str
    why: str


class Report(tuple[Change, ...]):
    """The changes that a call made; prints as one line each."""

    def __str__(self) -> str:
        lines = [f"{change.network}: {change.what} ({change.why})" for change in self]
        return "\n".join(lines) or "Nothing was left to do."


def optimize(
    networks: nn.Module | Mapping[str, nn.Module],
    *,
    compile: bool | Literal["blocks"] = False,
    graphs: bool = False,
    kernels: bool = False,
    device: torch.device | None = None,
) -> Report:
    """Make networks faster in place, by every step that is lossless and pays on their device and in their type.

    A second call does what has become possible or pointless since, such as after a move to another device, and else
    nothing. Gain and cost of every step are in the report, figures in docs/speed.md.

    Args:
        networks: a network, or several by name.
        compile: have convolutional networks compiled as well, see `Compiled`; with "blocks" only the blocks that they
            repeat, which compiles in less time, see `regional.CompiledBlocks`.
        graphs: have the calls of UNets on CUDA devices recorded and replayed as well; see `graphs.Replayed`.
        kernels: have kernels compute some layers as well: Triton's on CUDA devices, in C++ on CPUs with AVX512-BF16;
            see `fused.Fused` and `chosen.Native`.
        device: where the networks compute, if not where they are.

    Raises:
        ConfigError: a network is computing in a call of a pipeline, none can take what is asked for, or kernels do
            not work on the device.
        InputError: `compile` is another word.
        MissingDependencyError: kernels are asked for without Triton, or without a C++ compiler.
    """
    named = by_name(networks)
    if not isinstance(compile, bool):
        check_choice("compile", compile, ("blocks",))
    for option, wanted, else_is in (("graphs", graphs, "replayed"), ("kernels", kernels, "given kernels")):
        if compile and wanted:
            raise ConfigError(f"A network is compiled or {else_is}, not both; leave `compile` or `{option}` out.")
    choices: list[tuple[bool, list[Step]]] = [(compile is True, [COMPILED]), (compile == "blocks", [BLOCKS])]
    choices += [(kernels, [FUSED, NATIVE]), (graphs, [REPLAYED])]
    asked: list[Step] = []
    for steps in (steps for wanted, steps in choices if wanted):
        able = [step for step in steps if any(takes(step, network, device) for network in named.values())]
        if not able:
            what = " or ".join(f"the step {step.name!r}, which is for {NEEDS[step.name]}" for step in steps)
            raise ConfigError(f"No network here ({', '.join(named)}) can take {what}.")
        asked += able
    for step in (FUSED, NATIVE):
        if step in asked:
            step.check()
    return Report(change for name, network in named.items() for change in _planned(name, network, asked, device))


def deoptimize(networks: nn.Module | Mapping[str, nn.Module]) -> None:
    """Undo what `optimize` did; the weights are what they were, bit for bit.

    Raises:
        ConfigError: a network is computing in a call of a pipeline.
    """
    for network in by_name(networks).values():
        _undo(bare(network))


def by_name(networks: nn.Module | Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """Return networks by name, once it is known that none is in use."""
    named = {type(networks).__name__: networks} if isinstance(networks, nn.Module) else networks
    busy = [name for name, network in named.items() if layers.in_use(network)]
    if busy:
        raise ConfigError(f"{busy[0]} is computing in a call of a pipeline; change it before or after the call.")
    return named


def takes(step: Step, network: nn.Module, device: torch.device | None) -> bool:
    """Tell whether a network can take a step, or has taken it."""
    on, dtype = place(network, device)
    return step.name in done(network) or (dtype is not None and step.applies(network, on, dtype))


def _planned(name: str, network: nn.Module, asked: list[Step], device: torch.device | None) -> Iterator[Change]:
    """Apply to one network the steps that apply, and yield those that are new."""
    on, dtype = place(network, device)
    if dtype is None:
        return
    inner, have = bare(network), done(network)
    steps = [step for step in all_steps() if step in (*STEPS, *asked) or step.name in have]
    outdated = [step for step in steps if step.name in have and not step.applies(network, on, dtype)]
    if outdated or any(step in steps and step.name not in have for step in (COMPILED, BLOCKS)):
        _undo(inner)
    for step in steps:
        if step.name not in done(inner) and step.applies(network, on, dtype):
            step.apply(inner)
            vars(inner)[DONE] = (*done(inner), step.name)
            if step.name not in have:
                yield Change(name, step.name, step.gain)


def _undo(network: nn.Module) -> None:
    steps = {step.name: step for step in all_steps()}
    for name in reversed(done(network)):
        steps[name].undo(network)
    vars(network).pop(DONE, None)


def done(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the steps that were applied to a network."""
    return vars(bare(network)).get(DONE, ())


@contextmanager
def serving(networks: Iterable[nn.Module], *, suit: bool, device: torch.device | None = None) -> Iterator[None]:
    """Context of a call: what a CPU's type asks for is done meanwhile, and packed weights end with the call.

    That is float32 products where the CPU converts, oneDNN's products where they are faster, kernels of our own in
    bfloat16 where they can be compiled, a kept heap for autoencoders, and packed convolutions in half precision that
    the CPU multiplies in.

    What is packed anew in every call costs no memory between calls, and cannot be older than the call.

    Args:
        suit: leave the changes out with False.
        device: see `optimize`.
    """
    facts = [(network, *place(network, device)) for network in networks]
    changes = [(net, change) for net, on, dtype in facts if suit and dtype for change in lendable(net, on, dtype)]
    packed = [net for net, *_ in facts if Packed.name in done(net)]
    with layers.lent(changes) if changes else nullcontext():
        try:
            yield
        finally:
            release(packed)


def release(networks: Iterable[nn.Module]) -> None:
    """Forget the packed weights of networks that have done their part in a call; one that goes on packs anew."""
    for module in (module for network in networks for module in bare(network).modules()):
        layers.unpack(module)


def lendable(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[layers.Change]:
    """Yield what is done to a network for a call without being asked for; it costs no memory between calls.

    In types that the processor multiplies in, text encoders are left as they are: what they return is the same when
    they are called outside of a call of the pipeline.
    """
    if Widened().applies(network, device, dtype):
        yield layers.widen
    elif spatial(network) and Multiplied().applies(network, device, dtype):
        yield products.quicken
    if native.compiler_path() and spatial(network) and NATIVE.applies(network, device, dtype):
        yield chosen.native
    if KeptHeap().applies(network, device, dtype):
        yield heap.keep
    half = dtype in processor.HALF and dtype not in processor.CONVERTED
    if half and Packed().applies(network, device, dtype) and Packed.name not in done(network):
        yield layers.pack


def packed_bytes(networks: Iterable[nn.Module], *, suit: bool, device: torch.device | None = None) -> int:
    """Return the bytes of the copies that packed convolutions of networks keep during a call; see `serving`."""
    total = 0
    for network in networks:
        on, dtype = place(network, device)
        if dtype and (Packed.name in done(network) or (suit and layers.pack in lendable(network, on, dtype))):
            size = 4 if dtype in processor.CONVERTED else dtype.itemsize
            total += size * sum(layer.weight.numel() for layer in convolutions(bare(network)))
    return total


def place(network: nn.Module, device: torch.device | None) -> tuple[torch.device, torch.dtype | None]:
    """Return where a network computes and the type of its weights, which is None when it has none."""
    first = next((p for p in network.parameters() if p.is_floating_point()), None)
    if first is None:
        return device or torch.device("cpu"), None
    return device or first.device, first.dtype


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of a network whose weight is an ordinary parameter."""
    found = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return [layer for layer in found if type(layer._parameters.get("weight")) is nn.Parameter]


def spatial(network: nn.Module) -> bool:
    """Tell whether a network is convolutional, see `SPATIAL`."""
    held = sum(layer.weight.numel() for layer in convolutions(network))
    return held > SPATIAL * sum(p.numel() for p in network.parameters())


def ordered(network: nn.Module) -> bool:
    """Tell whether the weights of all convolutions are in the order height, width, channels."""
    return all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions(network))


def reorder(network: nn.Module, order: torch.memory_format) -> None:
    """Put the weights of convolutions, and what adapters have there, into an order; values stay."""
    for layer in convolutions(network):
        layer._apply(lambda tensor: tensor.contiguous(memory_format=order) if tensor.dim() == 4 else tensor)
