"""The documented `utils` names."""

from __future__ import annotations

from ..core import logging
from ..core.images import grid as make_image_grid
from ..core.images import load_image
from ..core.outputs import BaseOutput
from ..core.rng import randn_tensor

__all__ = ["BaseOutput", "load_image", "logging", "make_image_grid", "randn_tensor"]
