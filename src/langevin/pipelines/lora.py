"""The documented LoRA methods of pipelines."""

from __future__ import annotations


class StableDiffusionLoraLoaderMixin:
    """Adds the loading, scaling, fusing, saving and removing of LoRA adapters to a pipeline."""
