"""The documented `utils` names; each lives in `langevin.core`."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BaseOutput": "outputs",
    "load_image": "images",
    "make_image_grid": "images:grid",
    "logging": ":logging",
    "randn_tensor": "rng:randn_tensor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from ..core.errors import did_you_mean

        raise AttributeError(f"langevin.utils has no {name!r}{did_you_mean(name, _HOMES)}")
    module, _, attribute = _HOMES[name].partition(":")
    home = importlib.import_module(f"langevin.core.{module}" if module else f"langevin.core.{attribute}")
    return getattr(home, attribute or name) if module else home


def __dir__() -> list[str]:
    return sorted(_HOMES)
