"""Python's search for garbage, which is put off while much is built that stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """Let Python's collector of cycles rest inside the context.

    Python looks through all objects again when their number has grown by a quarter. While a network is built and filled
    it finds nothing, and after the imports of a program it can take longer than building.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
