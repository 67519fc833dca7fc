"""What `torch.compile` makes of a module: a wrapper that has the module inside."""

from __future__ import annotations

from typing import Any


def bare(module: Any) -> Any:
    """Return the module inside a compiled one, and anything else as it is."""
    return getattr(module, "_orig_mod", module)
