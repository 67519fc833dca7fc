"""Progress bars that honour the library's switch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import logging


def progress_bar(iterable: Iterable | None = None, total: int | None = None, **options: Any):
    """Return a tqdm bar over `iterable` or up to `total`; `options` are tqdm's own.

    Hidden when `logging.disable_progress_bar()` was called or `disable=True` is given.
    """
    from tqdm.auto import tqdm

    options.setdefault("disable", not logging.is_progress_bar_enabled())
    return tqdm(iterable, total=total, **options)
