"""The documented textual inversion methods of pipelines."""

from __future__ import annotations


class TextualInversionLoaderMixin:
    """Adds the loading and removing of learned words to a pipeline."""
