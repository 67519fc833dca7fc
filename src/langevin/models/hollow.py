"""Models without values: everything is built on the meta device, and initial values are not computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NAMES = "arange empty eye full linspace logspace ones rand randint randn randperm tensor zeros"
FACTORIES = frozenset(getattr(torch, name) for name in NAMES.split())
INITIALISERS = frozenset(
    (nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_, Tensor.fill_, Tensor.zero_)
)
"""What torch's layers call to set their initial values, as far as torch lets a mode see it."""


class Hollow(TorchFunctionMode):
    """Inside this context new tensors of this thread have no values, unless they name a device themselves.

    It does what `torch.device("meta")` does and also skips initialisation, which is most of the work of building a
    model that a checkpoint fills.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in INITIALISERS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        elif func in FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
