"""What a call of a pipeline will need: a rehearsal in which networks run on tensors that have no values.

The call runs as it always does, with networks whose weights and activations are shapes (torch's FakeTensorMode). What
they would allocate, free, compute and read is counted operation by operation, so that slices, tiles, adapters and
every other switch count as they act. Between the networks the run is real, on zeros.

Activations of the picturebook in float32 on a CPU, predicted and measured as growth of the process with an allocator
that gives freed memory back (`MALLOC_MMAP_THRESHOLD_=65536`): network 38.6 and 39 MB at 256 pixels, 154 and 155 at 512;
decoder 63.2 and 63, 252.8 and 252. What is not seen: memory that the allocator of the C library keeps (as it comes, up
to 1.6 times the activations there), code and tokenizers (about 40 MB), and scratch memory of kernels on accelerators.
"""

from __future__ import annotations

import copy
import inspect
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..core.errors import check_known
from ..core.weights_io import held_bytes
from ..nn.compiled import bare
from .plan import packed_bytes

ENTRIES = ("forward", "encode", "decode")
"""The methods by which pipelines call networks."""
LEFT_OUT = ("generator", "seed", "callback", "callback_on_step_end")
"""Arguments of a call that a rehearsal must not act on."""
SCALAR = torch.ops.aten._local_scalar_dense.default
CONVOLUTION = torch.ops.aten.convolution.default


@dataclass
class Stage:
    """What one network does in a call.

    Attributes:
        name: the component, and the method where it is not its plain call.
        calls: how often it is called.
        weights: bytes of the weights that are on the device meanwhile, those of waiting networks and copies of packed
            convolutions included.
        activations: bytes of the other tensors that are alive at once, at most.
        flops: floating-point operations of all calls.
        seconds: a rough time of all calls, None where it was not asked for.
    """

    name: str
    calls: int = 0
    weights: int = 0
    activations: int = 0
    flops: float = 0.0
    seconds: float | None = None
    work: list[tuple[float, int]] = field(default_factory=list, repr=False)

    @property
    def peak(self) -> int:
        """Bytes of weights and activations together."""
        return self.weights + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a call of a pipeline will need, stage by stage; its text is a table.

    Attributes:
        title: the pipeline, its device and its number format.
        stages: one for each network, in the order of their first calls.
    """

    title: str
    stages: tuple[Stage, ...]

    @property
    def peak(self) -> int:
        """Bytes of the stage that needs most."""
        return max((stage.peak for stage in self.stages), default=0)

    @property
    def flops(self) -> float:
        """Floating-point operations of the call."""
        return sum(stage.flops for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """A rough time of the call, None where it was not asked for."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if known else None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("stage", "calls", "weights", "activations", "peak", "GFLOP", "time")]
        rows += [
            (
                stage.name,
                str(stage.calls),
                *(megabytes(n) for n in (stage.weights, stage.activations, stage.peak)),
                f"{stage.flops / 1e9:,.1f}",
                duration(stage.seconds),
            )
            for stage in self.stages
        ]
        rows.append(("all", "", "", "", megabytes(self.peak), f"{self.flops / 1e9:,.1f}", duration(self.seconds)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in rows]
        return "\n".join([self.title, *map(str.rstrip, lines)])


def megabytes(count: int) -> str:
    """Return a number of bytes in MB of 1,000,000."""
    return f"{count / 1e6:,.1f} MB"


def duration(seconds: float | None) -> str:
    """Return a rough time in two digits, nothing for an unknown one."""
    return "" if seconds is None else f"{seconds:.2g} s"


class Ledger(TorchDispatchMode):
    """Counts the bytes of tensors on a device while they are alive, and the work of every operation.

    Tensors that were there before count nothing. A question that only values could answer, such as whether all are
    finite, is answered with yes.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.now = 0
        self.stages: dict[str, Stage] = {}
        self.stage = Stage("")
        self._sizes: dict[int, int] = {}
        self._inside = False

    def enter(self, name: str) -> Stage:
        """Count for a stage from now on."""
        self.stage = self.stages.setdefault(name, Stage(name))
        return self.stage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        if func is SCALAR and isinstance(args[0], FakeTensor):
            return True
        self._inside = True
        try:
            result = func(*args, **kwargs)
            self._count(func, args, kwargs, result)
        finally:
            self._inside = False
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = {x.untyped_storage()._cdata for x in given}
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        fresh = False
        for tensor in made:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in known and key not in self._sizes and tensor.device.type == self.device.type:
                fresh = True
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, key)
        scratch = workspace(func, given, made) if self.device.type == "cpu" else 0
        self.stage.activations = max(self.stage.activations, self.now + scratch)
        flops = flop_registry.get(func._overloadpacket)
        count = 0.0 if flops is None else flops(*args, **kwargs, out_val=result)
        if fresh or count:
            self.stage.flops += count
            self.stage.work.append((count, sum(x.numel() * x.element_size() for x in chain(given, made))))

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def workspace(func: Any, given: list[Tensor], made: list[Tensor]) -> int:
    """Return the bytes that a kernel of a CPU holds at most beside what it is given and what it returns.

    A convolution other than pointwise or of channels_last maps computes in an order of its own, with channels in
    sixteens: what it is given is copied into that order, and then its result out of it.
    """
    if func is not CONVOLUTION or given[0].dim() != 4 or max(given[1].shape[2:]) == 1:
        return 0
    if given[0].is_contiguous(memory_format=torch.channels_last):
        return 0
    before, after = (sixteens(x) for x in (given[0], made[0]))
    result = made[0].numel() * made[0].element_size()
    return max(before + after, after + result) - result


def sixteens(maps: Tensor) -> int:
    """Return the bytes of feature maps whose channels are filled up to a multiple of 16."""
    return maps.numel() // maps.shape[1] * -(-maps.shape[1] // 16) * 16 * maps.element_size()


class Rehearsed:
    """A method of a network that runs on shapes, and answers with zeros.

    A call of the same shapes as one before does not run again.
    """

    def __init__(self, name: str, method: Callable[..., Any], ledger: Ledger, mode: FakeTensorMode) -> None:
        self.name, self.method, self.ledger, self.mode = name, method, ledger, mode
        self.known: dict[Any, tuple[Any, float, list[tuple[float, int]]]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros of the shapes of the method's result."""
        seen: list[Any] = []
        stage = self.ledger.enter(self.name)
        stage.calls += 1
        mapped(lambda x: seen.append((x.shape, x.dtype)), (args, kwargs))
        key = tuple(seen)
        if key not in self.known:
            before, done = stage.flops, len(stage.work)
            with self.mode, self.ledger:
                result = self.method(*mapped(self.hollow, args), **mapped(self.hollow, kwargs))
            shapes = mapped(lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"), result)
            del result
            self.known[key] = shapes, stage.flops - before, stage.work[done:]
        else:
            stage.flops += self.known[key][1]
            stage.work += self.known[key][2]
        return mapped(lambda x: torch.zeros(x.shape, dtype=x.dtype, device=self.ledger.device), self.known[key][0])

    def hollow(self, tensor: Tensor) -> Tensor:
        """Return a tensor without values."""
        return tensor if isinstance(tensor, FakeTensor) else self.mode.from_tensor(tensor)


def mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Return what a method takes or gives with all tensors in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        inside = [mapped(change, one) for one in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    if isinstance(value, dict):
        return type(value)(**{name: mapped(change, one) for name, one in value.items()})
    held = {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
    if not any(isinstance(one, Tensor) for one in held.values()):
        return value
    twin = copy.copy(value)
    twin.__dict__.update({name: mapped(change, one) for name, one in held.items()})
    return twin


def rehearse(pipe: Any, call: Mapping[str, Any], *, timed: bool = True) -> Estimate:
    """Return what a call of a pipeline will need; see `DiffusionPipeline.estimate`."""
    taken = inspect.signature(type(pipe).__call__).parameters
    check_known(f"{type(pipe).__name__}.estimate", call, [*taken])
    given = {name: value for name, value in call.items() if name not in LEFT_OUT}
    if "prompt" in taken and given.get("prompt") is None and given.get("prompt_embeds") is None:
        given["prompt"] = ""
    offload = pipe._offload
    if offload is not None:
        offload.attach(pipe._networks)
    ledger, mode = Ledger(pipe._execution_device), FakeTensorMode(allow_non_fake_inputs=True)
    dry = copy.copy(pipe)
    dry._offload, dry._progress_bar_config = None, {"disable": True}
    for name, network in pipe._networks.items():
        setattr(dry, name, stand_in(name, network, ledger, mode, offload))
    with torch.inference_mode(False), torch.no_grad(), ledger:
        dry(**given)
    stages = tuple(ledger.stages.values())
    suits = {"suit": pipe.suits_processor, "device": pipe._computes_on}
    packed = {name: packed_bytes([network], **suits) for name, network in pipe._networks.items()}
    for stage in stages:
        name = stage.name.partition(".")[0]
        # The autoencoder works before the UNet packs its weights, and after it has forgotten them.
        kept = sum(size for network, size in packed.items() if name != "vae" or network != "unet")
        stage.weights = weights_during(name, pipe._networks, offload) + kept
    if timed:
        speed, width = probe(ledger.device, pipe.dtype)
        for stage in stages:
            stage.seconds = sum(max(flops / speed, moved / width) for flops, moved in stage.work)
    return Estimate(f"{type(pipe).__name__} on {ledger.device} in {str(pipe.dtype).removeprefix('torch.')}", stages)


def stand_in(name: str, network: nn.Module, ledger: Ledger, mode: FakeTensorMode, offload: Any) -> nn.Module:
    """Return a copy of a network on the ledger's device whose weights have no values, and whose methods are rehearsed.

    Of a safety checker only the part that sees is rehearsed, since its verdict needs values.
    """
    network = bare(network)
    seeing = getattr(network, "vision_model", network) if hasattr(network, "flags") else network
    memo: dict[int, Any] = {id(x): x for x in chain(network.parameters(), network.buffers())}
    with mode:
        memo |= {id(x): mode.from_tensor(x).to(ledger.device) for x in chain(seeing.parameters(), seeing.buffers())}
    if offload is not None:
        memo |= {id(one): one for one in (offload, *offload.units)}
    twin = copy.deepcopy(network, memo)
    for module in twin.modules() if offload is not None else ():
        for handle in offload._hooks:
            module._forward_pre_hooks.pop(handle.id, None)
    part = twin if seeing is network else twin.vision_model
    for method in ENTRIES:
        if hasattr(part, method):
            label = name if method == "forward" else f"{name}.{method}"
            setattr(part, method, Rehearsed(label, getattr(part, method), ledger, mode))
    return twin


def weights_during(name: str, networks: Mapping[str, nn.Module], offload: Any) -> int:
    """Return the bytes of weights that are on the device while a component computes."""
    if offload is None:
        tensors = {x for net in networks.values() for x in chain(net.parameters(), net.buffers())}
        return sum(map(held_bytes, tensors))
    own = [unit for unit in offload.units if unit.name.partition(".")[0] == name]
    after = own[1:] + own[:1]
    there = [{*a.family, *(b.family if offload.ahead else ())} for a, b in zip(own, after, strict=True)]
    kept = {unit for unit in offload.units if unit.stays}
    return max((sum(unit.bytes for unit in units | kept) for units in there), default=0)


def probe(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return the floating-point operations and the bytes per second of a device, measured in a fraction of a second.

    By a convolution of 3 by 3 over 2 maps of 256 channels and 32 by 32 pixels, and the sum of 2 rows of 16 million
    numbers; the best of 3.
    """
    place: dict[str, Any] = {"dtype": dtype, "device": device}
    maps, row = torch.ones(2, 256, 32, 32, **place), torch.ones(1 << 24, **place)
    kernel = torch.ones(256, 256, 3, 3, **place)
    with torch.no_grad():
        convolving = fastest(lambda: torch.nn.functional.conv2d(maps, kernel, padding=1), device)
        adding = fastest(lambda: torch.add(row, row, out=row), device)
    return 2 * maps.numel() * kernel[0].numel() / convolving, 3 * row.nbytes / adding


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the fastest of 3 runs after a first one."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
