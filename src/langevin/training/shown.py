"""Training of networks that are shown a picture beside the noised sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .latent import TextToImage


class Controlled(TextToImage):
    """Trains a ControlNet (Zhang & Agrawala 2023, 2302.05543, eq. 5) beside a locked UNet.

    What is trained is called "controlnet". Batches hold its pictures under "control", in [0, 1].
    """

    def predictor(self, batch: Mapping[str, Any]) -> Callable[..., Any]:
        """Return the UNet with the residuals of the ControlNet; it computes in the type that it was put into."""
        return partial(self._predicted, batch["control"])

    def _predicted(
        self, control: Tensor, sample: Tensor, timestep: Tensor, *, encoder_hidden_states: Tensor, return_dict: bool
    ) -> Any:
        net, unet = self.networks["controlnet"], self.pipe.unet
        down, middle = net(sample, timestep, encoder_hidden_states, control, return_dict=False)
        with torch.autocast(sample.device.type, enabled=False):
            return unet(
                sample.to(unet.dtype),
                timestep,
                encoder_hidden_states.to(unet.dtype),
                down_block_additional_residuals=tuple(residual.to(unet.dtype) for residual in down),
                mid_block_additional_residual=middle.to(unet.dtype),
                return_dict=return_dict,
            )


class Instructed(TextToImage):
    """Trains a UNet that sees the latents of a picture beside the sample (Brooks et al. 2022, 2211.09800, 3.2).

    Batches hold those pictures under "original", in [-1, 1], and under "shown" 1 or, for rows without them, 0.
    """

    encodes = ("pixels", "original")

    @torch.no_grad()
    def beside(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the likeliest latents of the pictures, unscaled, and zeros for rows that are shown none."""
        return self.spread(batch["original"])[0].float() * batch["shown"].reshape(-1, 1, 1, 1)
