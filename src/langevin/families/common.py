"""What every family asks of a network, whether it is a model of this library, a compiled one or any plain module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_not
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..nn.compiled import bare

Result = TypeVar("Result")


class Kept(Generic[Result]):
    """A function that is not called again while it is given the same objects; its last result is kept."""

    def __init__(self, make: Callable[..., Result]) -> None:
        self.make = make
        self._given: tuple[Any, ...] | None = None
        self._result: Any = None

    def __call__(self, *given: Any) -> Result:
        """Return what the function makes of the arguments, which are compared by identity."""
        if self._given is None or len(given) != len(self._given) or any(map(is_not, given, self._given)):
            self._result = self.make(*given)
            self._given = given
        return self._result


def option(module: Any, name: str, default: Any = None) -> Any:
    """Return a configuration value of a network; a plain module may offer it as an attribute."""
    module = bare(module)
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
