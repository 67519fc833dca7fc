"""Gradient checkpointing: recompute a block in the backward pass instead of keeping its activations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..core.errors import ConfigError


def run_block(owner: nn.Module, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `block`; where `owner.gradient_checkpointing` is set and gradients are recorded, recompute it later.

    `owner` is the module whose class sets `gradient_checkpointing = False`; `ModelMixin.enable_gradient_checkpointing`
    finds it by that attribute and may also place another function at `owner.gradient_checkpointing_function`.
    """
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return getattr(owner, "gradient_checkpointing_function", recomputed)(block, *args, **kwargs)
    return block(*args, **kwargs)


def recomputed(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `block` without keeping its activations (Chen et al. 2016, 1604.06174).

    It gives the bits of `torch.utils.checkpoint` without reentrance, at less cost per activation: a step of training
    with few rows of small pictures, which waits for Python and not for arithmetic, takes a seventh less time (the rows
    `train-lora` and `train-full` of `python -m benchmarks`). Compiled graphs, and devices whose random generators are
    asked in another way, take that of torch.
    """
    devices = {x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
    if torch.compiler.is_compiling() or any(device.type not in ("cpu", "cuda") for device in devices):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(block, *args, use_reentrant=False, **kwargs)
    later = Later(block, args, kwargs, [device for device in devices if device.type == "cuda"])
    with saved_tensors_hooks(later.leave, later.fetch):
        output = block(*args, **kwargs)
    later.forward_done()
    return output


class Later:
    """What the graph of a block asks for in place of its activations: they are computed when the first is wanted.

    Attributes:
        call: the block with its inputs.
        left: shape and type of every tensor that the graph would have kept, in order.
        found: these tensors, once they are computed; each is given away once.
        state: of the random generators before the block, None if it drew nothing.
    """

    def __init__(self, block: Callable[..., Any], args: Any, kwargs: Any, devices: list[torch.device]) -> None:
        self.call = partial(block, *args, **kwargs)
        self.inputs = [(x, x._version) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        self.devices = devices
        self.precision = [(kind, *autocast(kind)) for kind in {"cpu", *(device.type for device in devices)}]
        self.cached = torch.is_autocast_cache_enabled()
        self.left: list[tuple[torch.Size, torch.dtype]] = []
        self.found: list[Tensor | None] = []
        self.state: list[Tensor] | None = self.drawn()

    def forward_done(self) -> None:
        """Forget the state of the generators if the block drew nothing."""
        if self.state is not None and all(map(torch.equal, self.state, self.drawn())):
            self.state = None

    def leave(self, x: Tensor) -> int:
        """Take the number of a tensor in its place."""
        self.left.append((x.shape, x.dtype))
        return len(self.left) - 1

    def fetch(self, number: int) -> Tensor:
        """Return the tensor of a number."""
        if not self.found or self.found[number] is None:
            self.found = self.again()
        x, self.found[number] = self.found[number], None
        return x

    def again(self) -> list[Tensor | None]:
        """Compute the block once more, up to the last tensor that is wanted, and return them all.

        Raises:
            ConfigError: when the block does not compute what it did.
        """
        found: list[Tensor] = []

        def keep(x: Tensor) -> None:
            found.append(x.detach())
            if len(found) == len(self.left):
                raise Enough

        with ExitStack() as stack:
            stack.enter_context(saved_tensors_hooks(keep, nothing))
            stack.enter_context(torch.enable_grad())
            for kind, *then in self.precision:
                if then != list(autocast(kind)):
                    stack.enter_context(torch.autocast(kind, then[1], then[0], self.cached))
            if self.state is not None:
                stack.callback(self.draw_from, self.drawn())
                self.draw_from(self.state)
            with suppress(Enough):
                self.call()
        if [(x.shape, x.dtype) for x in found] != self.left or any(x._version != then for x, then in self.inputs):
            raise ConfigError(
                "A block with gradient checkpointing computed something else in the backward pass than in the forward "
                "pass: its switches, its adapters or its inputs were changed in between. Change them after it."
            )
        return list(found)

    def drawn(self) -> list[Tensor]:
        """Return the present state of the random generators."""
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices)]

    def draw_from(self, state: list[Tensor]) -> None:
        """Let the random generators begin at a state."""
        torch.set_rng_state(state[0])
        for device, one in zip(self.devices, state[1:], strict=True):
            torch.cuda.set_rng_state(one, device)


class Enough(Exception):
    """All that is wanted of a block is computed."""


def autocast(kind: str) -> tuple[bool, torch.dtype]:
    """Return whether a kind of device computes in another type, and in which."""
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def nothing(x: Any) -> Any:
    """Return what was kept of a graph that is thrown away."""
    return x
