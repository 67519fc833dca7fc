"""`langevin inspect`: what a weight file or folder is."""

from __future__ import annotations

import json

from ..weights.inspect import inspect
from .request import place_of


def report(path: str, model: str | None, *, as_json: bool) -> tuple[str, bool]:
    """Return the answer as text or JSON, and whether nothing is wrong.

    Raises:
        InputError: when there is nothing at `path` or at `model`.
    """
    found = inspect(place_of(path), model=None if model is None else place_of(model))
    return json.dumps(found.as_dict(), indent=2) if as_json else str(found), found.ok
