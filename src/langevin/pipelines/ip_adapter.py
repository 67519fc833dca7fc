"""The documented IP-Adapter methods of pipelines."""

from __future__ import annotations


class IPAdapterMixin:
    """Adds picture prompts to a pipeline."""
