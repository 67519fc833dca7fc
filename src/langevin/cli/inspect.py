"""`langevin inspect`: what a weight file or folder is."""

from __future__ import annotations

import json

from ..picturebook import model_folder
from ..weights.inspect import inspect
from .request import PICTUREBOOK


def report(path: str, model: str | None, *, as_json: bool) -> tuple[str, bool]:
    """Return the answer as text or JSON, and whether nothing is wrong.

    Raises:
        InputError: when there is nothing at `path` or at `model`.
    """
    place, against = (str(model_folder()) if name == PICTUREBOOK else name for name in (path, model))
    found = inspect(str(place), model=against)
    return json.dumps(found.as_dict(), indent=2) if as_json else str(found), found.ok
