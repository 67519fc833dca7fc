"""Blocks of one kind and size share what torch's compiler makes of them, in place of one graph of the whole network.

The compiler's time grows with the size of a graph, and a UNet repeats a few blocks many times.

Gain: the first call of a UNet of Stable Diffusion 1.5's size takes 25 s in place of 40 on one core (`python -m
benchmarks.products --full --compile --types bfloat16`). Loss: nothing is fused between blocks; on the CPU a call takes
as long as without a compiler, or a tenth less.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn

from ..nn.compiled import compiled
from ..nn.resnet import ResnetBlock
from ..nn.transformer import BasicTransformerBlock

REPEATED = (BasicTransformerBlock, ResnetBlock)
"""What networks repeat, and where they spend their time."""
BACKEND: str | Callable[..., Any] = "inductor"
"""Of torch's compiler."""


class CompiledBlocks:
    """Lets torch's compiler write the code of repeated blocks, once for all of one kind and size."""

    name = "compiled blocks"
    gain = "fewer passes over memory; the first call compiles each kind of block once, not the whole network"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network repeats blocks and is not compiled otherwise."""
        blocks = repeated(network)
        return bool(blocks) and (all(shared(block) for block in blocks) or not compiled(network))

    def apply(self, network: nn.Module) -> None:
        """Have the blocks compiled at their next call."""
        kinds: dict[Hashable, list[nn.Module]] = {}
        for block in repeated(network):
            kinds.setdefault(kind(block), []).append(block)
        for blocks in kinds.values():
            # Torch counts compilations by the code that was called, and gives up after some: each kind has its own.
            own = FunctionType(_called.__code__.replace(), _called.__globals__, _called.__name__)
            call = torch.compile(own, backend=BACKEND)
            for block in blocks:
                block._compiled_call_impl = partial(call, block)

    def undo(self, network: nn.Module) -> None:
        """Call the blocks as they are written again."""
        for block in repeated(network):
            block._compiled_call_impl = None


def _called(block: nn.Module, *args: Any, **options: Any) -> Any:
    return block._call_impl(*args, **options)


def repeated(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network that are among the repeated ones."""
    return [module for module in network.modules() if isinstance(module, REPEATED)]


def shared(block: nn.Module) -> bool:
    """Tell whether a block's call is compiled together with others."""
    return isinstance(block._compiled_call_impl, partial)


def kind(block: nn.Module) -> Hashable:
    """Return what blocks have in common that one graph serves: class, layers, and shapes of their weights."""
    layers = tuple((name, type(module)) for name, module in block.named_modules())
    return layers, tuple((name, value.shape, value.dtype) for name, value in block.state_dict().items())
