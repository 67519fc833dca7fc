"""Calls of a network recorded as a graph and replayed: one launch in place of a thousand.

A recording belongs to one form of call: shapes, types, keywords, and what holds around the call. It has buffers of its
own for every tensor that goes in, ControlNet residuals too, so inputs may change from call to call; outputs are cloned,
so that they stay what they are when it is played again. The first call of a form is a plain one, the second is recorded
and the others replay. Where a look at the network before a call finds its weights elsewhere, or other modules,
processors or hooks, everything is recorded anew.

What a graph cannot hold is called plainly, and said once: objects among the keywords (features that are reused,
references), a network with modules, processors or hooks that are not this library's, or one that changes at every step.

Gain: on a GPU the time between launches, where that is what a step waits for; not measured, since the tests' machine
has none. There the recording on the CPU proves the discipline of buffers, and equality. Loss: memory for buffers and
for the intermediate results of one call, which all recordings of a network share, and a look at all parts of the
network before every call, 1 ms of the host's time for one of Stable Diffusion's size.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from operator import is_
from types import MethodType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.logging import get_logger
from ..core.outputs import BaseOutput
from ..models.unets.unet_2d import UNet2DModel
from ..models.unets.unet_2d_condition import UNet2DConditionModel
from ..nn import ip_processors, processors
from ..nn.backends import get_attention_backend
from ..nn.compiled import bare
from ..nn.processors import named_attentions

logger = get_logger(__name__)
LIMIT = 8
"""How many forms of call a network remembers; the one that was used least recently goes first."""
PATIENCE = 8
"""Changes of a network in a row, without a replay between, after which it is left alone."""
WARM_UP = 2
"""Calls on the recording's stream before it is recorded, in which libraries allocate and choose."""
OURS = ("torch", __name__.partition(".")[0])
ADAPTERS = f"{OURS[1]}.adapters.attaching"
"""Where the hooks of adapters are written; what they read are tensors of the network."""


class Unfit(Exception):
    """Says why a call is no graph."""


class Recording(Protocol):
    """A call that can be played again."""

    device: ClassVar[str]

    def __init__(self, call: Callable[[], Any], pool: Any) -> None:
        """Record a call that reads its buffers."""

    def play(self) -> Any:
        """Compute anew from what is in the buffers; return the output, which the next play overwrites."""


class CudaRecording:
    """A CUDA graph, recorded on a stream of its own.

    Args:
        call: what is recorded.
        pool: memory that recordings share, of `torch.cuda.graph_pool_handle()`.
    """

    device: ClassVar[str] = "cuda"

    def __init__(self, call: Callable[[], Any], pool: Any) -> None:
        now, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(now)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        now.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            self.output = call()

    def play(self) -> Any:
        """Replay the graph."""
        self.graph.replay()
        return self.output


class Rehearsal:
    """What stands for a graph on the CPU, where it saves nothing: the call itself, into an output that stays in place.

    It shows in tests what a graph would show: inputs that were not copied in, and outputs that are read too late.
    """

    device: ClassVar[str] = "cpu"

    def __init__(self, call: Callable[[], Any], pool: Any) -> None:
        self.call = call
        self.output = mapped(call(), torch.clone)

    def play(self) -> Any:
        """Call, and overwrite the output."""
        places: list[Tensor] = []
        mapped(self.output, places.append)
        found = iter(places)
        mapped(self.call(), lambda made: next(found).copy_(made))
        return self.output


Known = tuple[Recording, list[Tensor]]
"""A recording, and its buffers in the order of the inputs."""


class Replay:
    """The forward pass of a network, recorded where it can be.

    Calls from several threads take turns. Copies and pickles have recorded nothing.

    Attributes:
        played: how many calls were replayed.
        told: the reasons for plain calls that were logged.
    """

    def __init__(self, network: nn.Module, record: type[Recording] = CudaRecording) -> None:
        self.network, self.record = network, record
        self.plain = MethodType(type(network).forward, network)
        functools.update_wrapper(self, self.plain)
        self.played = self.changes = 0
        self.told: set[str] = set()
        self.parts: tuple[list[Any], list[Any]] = ([], [])
        self.forms: OrderedDict[Hashable, Known | Unfit | None] = OrderedDict()
        self.pool: Any = None
        self.stream: Any = None
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Replay], tuple[nn.Module, type[Recording]]]:
        return type(self), (self.network, self.record)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network's own forward pass returns."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.jit.is_tracing():
            return self.plain(*args, **kwargs)
        tensors: list[Tensor] = []
        try:
            form = (formed(args, tensors), formed(kwargs, tensors), self.surroundings())
            with self.lock:
                known = self.known(form, args, kwargs)
                if known is not None:
                    recording, buffers = known
                    for buffer, given in zip(buffers, tensors, strict=True):
                        buffer.copy_(given)
                    self.played, self.changes = self.played + 1, 0
                    return mapped(recording.play(), torch.clone)
        except Unfit as why:
            if str(why) not in self.told:
                self.told.add(str(why))
                logger.warning("%s is called without a graph: %s.", type(self.network).__name__, why)
        return self.plain(*args, **kwargs)

    def surroundings(self) -> tuple[Hashable, ...]:
        """Return what beside inputs and network decides about a call; raise Unfit where nothing can be recorded."""
        device = next(self.network.parameters()).device
        if device.type != self.record.device:
            raise Unfit(f"it is on {device.type}, and graphs are recorded on {self.record.device}")
        if device.type == "cuda":
            now = torch.cuda.current_stream(device)
            if torch.cuda.is_current_stream_capturing():
                raise Unfit("it is part of another recording")
            if self.forms and now != self.stream:
                raise Unfit("it was recorded for another CUDA stream")
            self.stream = now
        mixed = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        precision = torch.get_float32_matmul_precision()
        return device, mixed, torch.is_inference_mode_enabled(), get_attention_backend(), precision

    def known(self, form: Hashable, args: Any, kwargs: Any) -> Known | None:
        """Return the recording of a form of call, made now if it was seen before; None at first sight.

        All that is known of a network that has changed since is forgotten.
        """
        if self.changes > PATIENCE:
            raise Unfit("it changes at every call")
        now = parts_of(self.network)
        if not unchanged(self.parts, now):
            self.parts, self.changes = now, self.changes + 1
            self.forms.clear()
        seen = form in self.forms
        found: Known | Unfit | None = self.forms.setdefault(form, None)
        self.forms.move_to_end(form)
        while len(self.forms) > LIMIT:
            self.forms.popitem(last=False)
        if seen and found is None:
            try:
                found = self.recorded(args, kwargs)
            except Unfit as why:
                found = why
            self.forms[form] = found
        if isinstance(found, Unfit):
            raise found
        return found

    def recorded(self, args: Any, kwargs: Any) -> Known:
        """Record a call; its buffers are on the network's device."""
        check(self.network)
        device = next(self.network.parameters()).device
        buffers: list[Tensor] = []

        def buffer(given: Tensor) -> Tensor:
            buffers.append(torch.empty_like(given, device=device, requires_grad=False).copy_(given))
            return buffers[-1]

        own_args, own_kwargs = mapped(args, buffer), mapped(kwargs, buffer)
        here: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            here, self.pool = torch.cuda.device(device), self.pool or torch.cuda.graph_pool_handle()
        try:
            with here:
                return self.record(lambda: self.plain(*own_args, **own_kwargs), self.pool), buffers
        except RuntimeError as error:
            raise Unfit(f"recording failed ({str(error).splitlines()[0]})") from error


# What a call and a network are made of ---------------------------------------------------------------------------


def formed(value: Any, tensors: list[Tensor], depth: int = 0) -> Hashable:
    """Return the form of a call's inputs, and append the tensors in them; raise Unfit for what has none.

    Numbers inside dictionaries and lists have none: those that processors and adapters read set something elsewhere.
    """
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter):
            raise Unfit(f"an input is a {type(value).__name__}")
        tensors.append(value)
        return Tensor, value.shape, value.stride(), value.dtype, value.device
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) in (int, float) and depth == 1:
        return type(value), value
    if type(value) in (tuple, list):
        return type(value), *(formed(one, tensors, depth + 1) for one in value)
    if type(value) is dict:
        return dict, *((name, formed(one, tensors, depth + 1)) for name, one in value.items())
    raise Unfit(f"a graph holds no {type(value).__name__} among the inputs")


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return inputs or outputs with every tensor changed, in the order of `formed`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, BaseOutput):
        return type(value)(**{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})  # type: ignore[arg-type]
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(one, change) for one in value)
    if isinstance(value, dict):
        return {name: mapped(one, change) for name, one in value.items()}
    return value


def walked(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a network, those that are in it twice twice."""
    left: list[nn.Module | None] = [network]
    while left:
        module = left.pop()
        if module is not None:
            yield module
            left += module._modules.values()


def parts_of(network: nn.Module) -> tuple[list[Any], list[Any]]:
    """Return everything that a network is made of, and where its weights are."""
    found: list[Any] = []
    weights: list[Tensor | None] = []
    for module in walked(network):
        own = module.__dict__
        found += (module, type(module))
        found += own.values()
        found += own["_forward_hooks"].values()
        found += own["_forward_pre_hooks"].values()
        weights += own["_parameters"].values()
        weights += own["_buffers"].values()
    found += weights
    return found, [(weight.data_ptr(), weight.dtype) for weight in weights if weight is not None]


def unchanged(before: tuple[list[Any], list[Any]], now: tuple[list[Any], list[Any]]) -> bool:
    """Tell whether a network is made of the same objects, with weights in the same places."""
    return before[1] == now[1] and len(before[0]) == len(now[0]) and all(map(is_, before[0], now[0]))


def check(network: nn.Module) -> None:
    """Raise Unfit for a network that does more than compute, as far as its parts tell."""
    for module in walked(network):
        if type(module).__module__.partition(".")[0] not in OURS:
            raise Unfit(f"{type(module).__name__} is not a module of this library")
        if module is network:
            continue
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        strange = [hook for hook in hooks if getattr(hook, "__module__", None) != ADAPTERS]
        if strange or "forward" in module.__dict__:
            raise Unfit(f"a {type(module).__name__} in it has hooks, which a graph does not call")
    for name, attention in named_attentions(network):
        kind = type(attention.processor)
        if kind.__module__ not in (processors.__name__, ip_processors.__name__):
            raise Unfit(f"{name} has a processor of another kind, {kind.__name__}")


# On and off --------------------------------------------------------------------------------------------------------


def attach(network: nn.Module, record: type[Recording] = CudaRecording) -> Replay:
    """Let a network replay its calls; it is done when the network is on the device that recordings are made on.

    Raises:
        ConfigError: for a compiled network, or one whose forward pass somebody else has replaced.
    """
    if bare(network) is not network:
        raise ConfigError('A compiled network records graphs itself: compile it with mode="reduce-overhead".')
    if "forward" in vars(network) and not isinstance(network.forward, Replay):
        raise ConfigError(f"The forward pass of {type(network).__name__} was replaced; take that away first.")
    network.forward = replay = Replay(network, record)
    return replay


def detach(network: nn.Module) -> None:
    """Let a network compute every call, and forget what was recorded."""
    if isinstance(vars(network).get("forward"), Replay):
        del network.forward


class Replayed:
    """Replays recorded calls: a step of `optimize`, for UNets on a CUDA device."""

    name = "CUDA graphs"
    gain = "one launch per call from the third call of a form on; buffers and results stay in memory; not measured"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network is a UNet of this library on a CUDA device, neither compiled nor changed."""
        free = bare(network) is network and network._compiled_call_impl is None
        own = isinstance(vars(network).get("forward", network.forward), (Replay, MethodType))
        return device.type == "cuda" and free and own and isinstance(network, (UNet2DConditionModel, UNet2DModel))

    def apply(self, network: nn.Module) -> None:
        """Record from now on."""
        attach(network)

    def undo(self, network: nn.Module) -> None:
        """Compute every call again."""
        detach(network)
