"""The documented home of the image processors."""

from .pipelines.image_processor import IPAdapterMaskProcessor, VaeImageProcessor

__all__ = ["IPAdapterMaskProcessor", "VaeImageProcessor"]
