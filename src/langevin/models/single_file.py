"""The documented loading of a network from a file in its authors' own layout. The work is done in `weights`."""

from __future__ import annotations


class FromOriginalModelMixin:
    """Adds `from_single_file` to a network."""
