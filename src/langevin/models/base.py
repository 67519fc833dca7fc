"""The base of every network: configuration, loading, saving, memory switches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.config import ConfigMixin


class ModelMixin(nn.Module, ConfigMixin):
    """A torch module with a documented configuration file."""

    config_name = "config.json"

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.parameters()).device
