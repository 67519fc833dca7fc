"""What every family asks of a network, whether it is a model of this library, a compiled one or any plain module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def option(module: Any, name: str, default: Any = None) -> Any:
    """Return a configuration value of a network; a plain module may offer it as an attribute."""
    module = getattr(module, "_orig_mod", module)
    config = getattr(module, "config", None)
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return getattr(module, name, default) if value is None else value


def dtype_of(module: Any, default: torch.dtype) -> torch.dtype:
    """Return the type of a module's weights, or `default` for a module without any and for a plain function."""
    found = getattr(module, "dtype", None)
    if isinstance(found, torch.dtype):
        return found
    if not isinstance(module, nn.Module):
        return default
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), default)


def sample_of(output: Any) -> Tensor:
    """Return the tensor of a network's output: its `sample`, or the first of a tuple."""
    found = getattr(output, "sample", None)
    return found if isinstance(found, Tensor) else output[0]


def timestep_on(timestep: int | float, device: torch.device) -> Tensor:
    """Return a step's timestep as networks take it, a scalar tensor; filled on the device, which needs no transfer."""
    return torch.full((), timestep, dtype=torch.int64 if isinstance(timestep, int) else torch.float32, device=device)
