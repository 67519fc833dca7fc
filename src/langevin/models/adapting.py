"""The documented adapter methods of networks. The work is done in `adapters`."""

from __future__ import annotations


class AdapterMixin:
    """Adds the loading, scaling, fusing and removing of adapters to a network."""
