"""Networks on the accelerator only while they compute: whole ones, or block after block with the next on its way.

The weights of a unit, a whole network or a block of one, wait on the CPU. Hooks tell which unit is about to compute; it
is brought to the device, and what neither computes nor comes next is let go. Weights that did not change while they
were there are not copied back. What comes next is what came next the last time, so from the second step on copying and
computing overlap where the device has streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.errors import ConfigError
from ..models.placement import present
from ..nn.compiled import bare, compiled


def accelerator(gpu_id: int | None = None, device: torch.device | str | None = None) -> torch.device:
    """Return the device that networks are brought to.

    Args:
        gpu_id: its number, 0 if unset.
        device: its kind, or all of it; the machine's accelerator if unset.

    Raises:
        ConfigError: where there is none, or two numbers are given.
        InputError: for a device that is not here.
    """
    found = torch.accelerator.current_accelerator() if device is None else present(device)
    if found is None or found.type == "cpu":
        raise ConfigError("There is no accelerator to offload from; leave the line out, or name one with `device`.")
    if gpu_id is not None and found.index not in (None, gpu_id):
        raise ConfigError(f"gpu_id={gpu_id} and device={found} name two devices; give one of them.")
    return found if gpu_id is None else present(f"{found.type}:{gpu_id}")


class Carrier:
    """Brings tensors to a device, on a CUDA device by a stream of its own, so that copying and computing overlap."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def pack(self, tensor: Tensor) -> Tensor:
        """Return a tensor as it waits on the CPU: in memory that the device reads by itself, where it can."""
        tensor = tensor.to("cpu")
        return tensor if self.stream is None or tensor.is_pinned() else tensor.pin_memory()

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Begin to copy tensors to the device and return what they become there."""
        if self.stream is None:
            return [tensor.to(self.device) for tensor in tensors]
        with torch.cuda.stream(self.stream):
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    def settle(self, sent: Sequence[Tensor]) -> None:
        """Let what is computed from now on wait for the copies."""
        if self.stream is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self.stream)
            for tensor in sent:
                tensor.record_stream(now)


@dataclass(eq=False)
class Place:
    """A weight or a buffer, whose values are on the CPU or on the device.

    Attributes:
        tensor: the module's own tensor object, which stays the same.
        waiting: its values on the CPU while it has those of the device.
        mark: tells whether these were changed.
    """

    tensor: Tensor
    waiting: Tensor | None = None
    mark: tuple[int, int] = (0, 0)

    def arrive(self, values: Tensor) -> None:
        """Take the values of the device."""
        self.waiting, self.tensor.data = self.tensor.data, values
        self.mark = self._mark()

    def leave(self, pack: Callable[[Tensor], Tensor]) -> None:
        """Take the values that wait again; what changed meanwhile is copied."""
        if self.waiting is not None:
            self.tensor.data = self.waiting if self._mark() == self.mark else pack(self.tensor.data)
            self.waiting = None

    def _mark(self) -> tuple[int, int]:
        return 0 if self.tensor.is_inference() else self.tensor._version, self.tensor.data_ptr()


@dataclass(eq=False)
class Unit:
    """What is brought and let go together.

    Attributes:
        parents: the units around it, outermost first, which stay while it computes.
        stays: whether it is never let go.
        sent: its tensors on the device; None while it waits.
        fresh: whether it was brought and not used yet.
    """

    name: str
    parents: tuple[Unit, ...] = ()
    places: list[Place] = field(default_factory=list)
    stays: bool = False
    sent: list[Tensor] | None = None
    fresh: bool = False

    @property
    def family(self) -> tuple[Unit, ...]:
        """The units around it, and itself."""
        return (*self.parents, self)

    @property
    def bytes(self) -> int:
        """Size of its weights."""
        return sum(place.tensor.nbytes for place in self.places)


class Offload:
    """Brings units of networks to a device when they compute.

    Args:
        device: where they compute.
        blocks: bring blocks of networks one after the other, rather than whole networks.
        resident: share of the bytes of all blocks that is on the device at all times.
        ahead: bring the block that came next the last time while one computes.
        carrier: copies; one for the device if unset.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        blocks: bool = False,
        resident: float = 0.0,
        ahead: bool = True,
        carrier: Carrier | None = None,
    ) -> None:
        if not 0 <= resident <= 1:
            raise ConfigError(f"resident is {resident}; it is a share between 0 and 1.")
        self.device, self.blocks, self.resident = device, blocks, resident
        self.ahead, self.carrier = ahead and blocks, carrier or Carrier(device)
        self.units: list[Unit] = []
        self._aboard: dict[Unit, None] = {}
        self._hooks: list[RemovableHandle] = []
        self._plan: tuple[int, ...] = ()
        self._next: dict[Unit, Unit] = {}
        self._now: Unit | None = None
        self._last: Unit | None = None

    # ---- the plan ---------------------------------------------------------------------------------------------------

    def attach(self, networks: Mapping[str, nn.Module]) -> None:
        """Take charge of networks, unless it was done already; modules that were added since are found.

        Raises:
            ConfigError: for a compiled network that should be brought in blocks.
        """
        inside = [module for network in networks.values() for module in network.modules()]
        plan = tuple(id(one) for module in inside for one in (module, *own_tensors(module)))
        if plan == self._plan:
            return
        hidden = [name for name, network in networks.items() if self.blocks and compiled(network)]
        if hidden:
            raise ConfigError(f"{hidden[0]} is compiled, which hides its blocks; use `enable_model_cpu_offload`.")
        self.detach()
        for name, network in {id(net): (name, net) for name, net in networks.items()}.values():
            owners = owning(network, units_of(name, network) if self.blocks else {network: Unit(name)})
            fill(owners)
            self._watch(network, owners)
            self.units += dict.fromkeys(owners.values())
        for place in chain.from_iterable(unit.places for unit in self.units):
            place.tensor.data = self.carrier.pack(place.tensor.data)
        self._choose()
        self._plan = plan

    def detach(self) -> None:
        """Bring everything to the CPU and forget the networks."""
        self._leave(self._aboard)
        for hook in self._hooks:
            hook.remove()
        self.units, self._hooks, self._plan, self._next, self._now, self._last = [], [], (), {}, None, None

    def free(self) -> None:
        """Let go of everything that need not stay."""
        self._leave(unit for unit in self._aboard if not unit.stays)
        self._now = None

    @contextmanager
    def running(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Context of a run over networks, after which the memory of the device is free again."""
        self.attach(networks)
        try:
            yield
        finally:
            self.free()

    def _watch(self, network: nn.Module, owners: Mapping[nn.Module, Unit]) -> None:
        """Hook the modules that tell which unit computes: those with weights, or the outermost if networks move whole.

        A compiled network is called through its wrapper alone, except for methods beside `forward`.
        """
        whole = bare(network)
        watched = [module for module in owners if any(True for _ in own_tensors(module))]
        if not self.blocks:
            watched = [network, *whole.children()] if whole is network or hasattr(whole, "decode") else [network]
        for module in watched:
            hook = partial(self._before, owners[module])
            self._hooks.append(module.register_forward_pre_hook(hook, prepend=True))

    def _choose(self) -> None:
        """Mark the units that stay, spread evenly."""
        done = kept = 0
        for unit in self.units if self.resident else ():
            done += unit.bytes
            unit.stays = kept + unit.bytes <= done * self.resident
            kept += unit.bytes if unit.stays else 0

    # ---- bringing and letting go ------------------------------------------------------------------------------------

    def _before(self, unit: Unit, module: nn.Module, args: object) -> None:
        if unit is not self._now and not torch.compiler.is_compiling():
            self._need(unit)

    def _need(self, unit: Unit) -> None:
        """Make a unit and those around it compute on the device, and begin to bring the next."""
        keep = {*unit.family, *self._following()}
        self._leave(other for other in self._aboard if other not in keep and not other.stays)
        self._arrive(unit.family)
        fresh = [one for one in unit.family if one.fresh]
        for one in fresh:
            self.carrier.settle(one.sent or ())
            one.fresh = False
        if fresh and self.ahead:
            if self._last is not None:
                self._next[self._last] = unit
            self._last = unit
        self._arrive(self._following())
        self._now = unit

    def _following(self) -> tuple[Unit, ...]:
        """Return what came the last time after what was brought and used last."""
        following = None if self._last is None else self._next.get(self._last)
        return () if following is None else following.family

    def _arrive(self, units: Iterable[Unit]) -> None:
        for unit in units:
            if unit.sent is not None:
                continue
            unit.sent = self.carrier.send([place.tensor.data for place in unit.places])
            for place, values in zip(unit.places, unit.sent, strict=True):
                place.arrive(values)
            unit.fresh = True
            self._aboard[unit] = None

    def _leave(self, units: Iterable[Unit]) -> None:
        for unit in list(units):
            for place in unit.places:
                place.leave(self.carrier.pack)
            unit.sent, unit.fresh = None, False
            del self._aboard[unit]


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights and buffers of a module, without those of modules inside it."""
    return (tensor for tensor in chain(module._parameters.values(), module._buffers.values()) if tensor is not None)


def units_of(name: str, network: nn.Module) -> dict[nn.Module, Unit]:
    """Return the units of a network by the modules that they begin at: itself, its parts, and the elements of lists."""
    found = {network: Unit(name)}

    def visit(module: nn.Module, path: str, around: tuple[Unit, ...]) -> None:
        for key, child in module.named_children():
            inside, where = around, f"{path}.{key}"
            begins = module is network or isinstance(module, nn.ModuleList)
            if begins and child not in found and not isinstance(child, nn.ModuleList):
                found[child] = Unit(where, around)
                inside = (*around, found[child])
            visit(child, where, inside)

    visit(network, name, (found[network],))
    return found


def owning(network: nn.Module, begins: Mapping[nn.Module, Unit]) -> dict[nn.Module, Unit]:
    """Return the unit of every module of a network: the innermost that begins at it or around it."""
    owner = {network: begins[network]}
    for module in network.modules():
        for child in module.children():
            owner.setdefault(child, begins.get(child) or owner[module])
    return owner


def fill(owners: Mapping[nn.Module, Unit]) -> None:
    """Give every weight and buffer to the unit of its module, and those that several units share to the outermost."""
    root = next(iter(owners.values()))
    held: dict[Tensor, Unit] = {}
    for module, unit in owners.items():
        for tensor in own_tensors(module):
            held[tensor] = unit if held.setdefault(tensor, unit) is unit else root
    for tensor, unit in held.items():
        unit.places.append(Place(tensor))
