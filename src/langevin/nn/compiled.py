"""What `torch.compile` makes of a module or a function, and what its compiler is told about calls."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

FIRST: WeakKeyDictionary[Any, torch.Size] = WeakKeyDictionary()
"""Height and width with which compiled code was called first; see `vary`."""


def bare(module: Any) -> Any:
    """Return the module inside a compiled one, and anything else as it is."""
    return getattr(module, "_orig_mod", module)


def compiled(network: Any) -> bool:
    """Tell whether a network or a part of it is compiled, by a wrapper or in place."""
    return bare(network) is not network or any(m._compiled_call_impl is not None for m in network.modules())


def is_graph(called: Any) -> bool:
    """Tell whether calls of a network or a function are compiled as a whole, by a wrapper or in place."""
    wrapped = bare(called) is not called or hasattr(called, "_torchdynamo_orig_callable")
    return wrapped or getattr(called, "_compiled_call_impl", None) is not None


def looked_through() -> bool:
    """Tell whether a compiler, exporter or transform looks through a computation, so that kernels would be opaque."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def like(wrapper: Any, part: Any) -> Any:
    """Return a part of a network, compiled as the wrapper around the network says; as it is where there is none."""
    return part if bare(wrapper) is wrapper else wrapper.dynamo_ctx(part)


def vary(called: Any, *maps: Tensor) -> None:
    """Tell torch's compiler that height and width vary, once what is compiled is called at a second size.

    The compiler itself takes only the side that has changed for one that varies, and compiles anew when the other does.
    The first size keeps a graph of its own, which is faster.

    Args:
        called: the network or function that the maps are about to be given to; nothing is done unless it is compiled.
        maps: (..., height, width); the sides of the first are what counts.
    """
    if torch.compiler.is_compiling() or not is_graph(called):
        return
    sides = maps[0].shape[-2:]
    if FIRST.setdefault(bare(called), sides) != sides:
        for one in maps:
            torch._dynamo.maybe_mark_dynamic(one, [one.dim() - 2, one.dim() - 1])
