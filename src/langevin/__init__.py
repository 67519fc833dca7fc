"""Langevin: load a published diffusion checkpoint, generate, edit, fine-tune, evaluate and serve.

Public names are read from `langevin.registry` and imported on first use; importing the package loads neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    from .registry import HOMES

    if name in HOMES:
        home = importlib.import_module(f"{__name__}.{HOMES[name]}")
        value = getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{home.__name__}.{name}")
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    from .core.errors import did_you_mean

    raise AttributeError(f"langevin has no {name!r}{did_you_mean(name, HOMES)}")


def __dir__() -> list[str]:
    from .registry import HOMES

    return sorted({*globals(), *HOMES})
