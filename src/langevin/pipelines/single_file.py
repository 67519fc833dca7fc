"""The documented loading of a pipeline from one file in its authors' own layout."""

from __future__ import annotations


class FromSingleFileMixin:
    """Adds `from_single_file` to a pipeline."""
