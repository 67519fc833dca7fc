"""What `torch.compile` makes of a module: a wrapper that has the module inside."""

from __future__ import annotations

from typing import Any


def bare(module: Any) -> Any:
    """Return the module inside a compiled one, and anything else as it is."""
    return getattr(module, "_orig_mod", module)


def compiled(network: Any) -> bool:
    """Tell whether a network or a part of it is compiled, by a wrapper or in place."""
    return bare(network) is not network or any(m._compiled_call_impl is not None for m in network.modules())
