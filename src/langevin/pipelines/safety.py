"""The safety checker that Stable Diffusion folders carry: CLIP similarity of a picture to fixed concepts.

Imported only when a folder or a caller names the class, because it is a transformers model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPVisionModel, PreTrainedModel

from ..core.logging import get_logger

logger = get_logger(__name__)
CARE_MARGIN = 0.01
"""How much every threshold drops for a picture that is close to one of the special-care concepts."""


class StableDiffusionSafetyChecker(PreTrainedModel):
    """Flags pictures whose CLIP embedding is closer to one of 17 concepts than the stored threshold, and blackens them.

    Three more concepts ask for special care: they flag nothing, but lower the other thresholds.
    """

    config_class = CLIPConfig
    main_input_name = "clip_input"
    _no_split_modules = ("CLIPEncoderLayer",)

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        width = config.projection_dim
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        for name, count in (("concept", 17), ("special_care", 3)):
            setattr(self, f"{name}_embeds", nn.Parameter(torch.ones(count, width), requires_grad=False))
            setattr(self, f"{name}_embeds_weights", nn.Parameter(torch.ones(count), requires_grad=False))
        self.post_init()

    @torch.no_grad()
    def flags(self, clip_input: Tensor) -> list[bool]:
        """Return one flag per picture of `clip_input`, the feature extractor's pixel values."""
        embedding = functional.normalize(self.visual_projection(self.vision_model(clip_input)[1]))
        care = excess(embedding, self.special_care_embeds, self.special_care_embeds_weights)
        margin = CARE_MARGIN * (care > 0).any(axis=1, keepdims=True)
        scores = excess(embedding, self.concept_embeds, self.concept_embeds_weights, margin)
        return (scores > 0).any(axis=1).tolist()

    @torch.no_grad()
    def forward(self, clip_input: Tensor, images: Any) -> tuple[Any, list[bool]]:
        """Return the pictures, flagged ones set to zero, and the flags.

        Args:
            clip_input: the feature extractor's pixel values of the pictures.
            images: tensor, array or list of them with values in [0, 1]; changed in place.
        """
        flags = self.flags(clip_input)
        blacken(images, flags)
        return images, flags


def excess(embedding: Tensor, concepts: Tensor, thresholds: Tensor, margin: np.ndarray | float = 0.0) -> np.ndarray:
    """Return similarity minus threshold, rounded to three decimals, (pictures, concepts).

    Computed on the host in float64, which not every device has.

    Args:
        embedding: of unit length, (pictures, width).
    """
    similarity = embedding @ functional.normalize(concepts).T
    near, far = (values.float().cpu().numpy().astype(np.float64) for values in (similarity, thresholds))
    return np.round((near - far + margin) * 1000) / 1000


def blacken(images: Tensor | Sequence[Any], flags: Sequence[bool]) -> None:
    """Set flagged pictures to zero in place and say so."""
    for k, flag in enumerate(flags):
        if flag:
            images[k] = images[k] * 0
    if any(flags):
        logger.warning(
            "The safety checker flagged pictures %s; they are returned black. Try another prompt or seed.",
            [k for k, flag in enumerate(flags) if flag],
        )
