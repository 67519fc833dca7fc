"""The documented home of the image processors."""

from .pipelines.image_processor import VaeImageProcessor

__all__ = ["VaeImageProcessor"]
