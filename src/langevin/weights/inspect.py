"""`inspect`: what a weight file or a model's folder is, from headers and configurations alone.

No tensor is read, no code is run, nothing is loaded and the network is not asked.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.files import missing
from .fit import compare
from .folders import of_folder
from .inspection import Inspection, of_file


def inspect(path: str | os.PathLike, *, model: Any = None) -> Inspection:
    """Say what a weight file or a model's folder is: family, kind, dialect, types, rank, damage and more.

    Reads headers and configurations alone. Damage is part of the answer and not an error.

    Args:
        path: a file (.safetensors, .ckpt, .bin, .pt ...), or a folder of a pipeline, model or adapter.
        model: a pipeline or network, or the path of one, for which the answer also says whether `path` fits it.
    Raises:
        InputError: when there is nothing at `path`.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise missing(place)
    found = of_folder(place) if place.is_dir() else of_file(place)
    found = replace(found, path=os.fspath(path))
    return found if model is None else replace(found, fit=compare(place, found.kind, found.family, model))
