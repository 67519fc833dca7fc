"""The documented `utils.torch_utils` names."""

from __future__ import annotations

from ..core.rng import randn_tensor

__all__ = ["randn_tensor"]
