"""What pipelines return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.outputs import BaseOutput


@dataclass
class ImagePipelineOutput(BaseOutput):
    """Pictures of an unconditional pipeline.

    Attributes:
        images: list of PIL pictures, or an array (batch, height, width, channels) in [0, 1], or a tensor
            (batch, channels, height, width) in [0, 1], as `output_type` asked.
    """

    images: Any


@dataclass
class StableDiffusionPipelineOutput(BaseOutput):
    """Pictures of a Stable Diffusion pipeline.

    Attributes:
        images: see `ImagePipelineOutput`; with `output_type="latent"` the latents themselves.
        nsfw_content_detected: one flag per picture, or None when no safety checker looked at them.
    """

    images: Any
    nsfw_content_detected: list[bool] | None


@dataclass
class StableDiffusionXLPipelineOutput(BaseOutput):
    """Pictures of a Stable Diffusion XL pipeline.

    Attributes:
        images: see `ImagePipelineOutput`; with `output_type="latent"` the latents themselves.
    """

    images: Any
