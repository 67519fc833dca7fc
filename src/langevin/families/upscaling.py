"""The latent upscaler: a network preconditioned for exploding noise, told about the size of the noise by its logarithm.

Karras et al. 2022 (2206.00364), section 5 and table 1, with unit variance of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..diffusion.table import Step
from .conditioning import Conditioning
from .denoiser import Denoiser

LEVEL_WIDTH = 64
"""Width of each half, cosine and sine, of the embedded noise of the low-resolution picture."""


@dataclass(frozen=True)
class PooledText(Conditioning):
    """What the upscaler is told: `text` (batch, tokens, width) and `pooled` (batch, width)."""

    text: Tensor
    pooled: Tensor
    offered: ClassVar[Mapping[str, str]] = {"prompt_embeds": "text", "pooled_prompt_embeds": "pooled"}

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of the network's call; the picture beside the sample is given without noise."""
        level = self.pooled.new_zeros(len(self.pooled), 2 * LEVEL_WIDTH)
        level[:, :LEVEL_WIDTH] = 1.0
        return {"encoder_hidden_states": self.text, "timestep_cond": torch.cat([level, self.pooled], dim=1)}


class PreconditionedDenoiser(Denoiser):
    """A network F with x0 = c_skip x + c_out F(c_in x, log(sigma) / 4), whose last output channel is left out."""

    def told(self, step: Step) -> float:
        """Return a quarter of the logarithm of the noise level."""
        if step.level.alpha != 1.0 or step.level.sigma <= 0.0:
            raise ConfigError(
                "The latent upscaler needs a sampler whose samples keep their scale, such as EulerDiscreteScheduler."
            )
        return 0.25 * math.log(step.level.sigma)

    def read(self, output: Tensor, x: Tensor, step: Step) -> Tensor:
        """Return x0 for every branch."""
        total = step.level.sigma**2 + 1.0
        output = output[:, : x.shape[1]]
        copies = x.repeat(len(output) // len(x), 1, 1, 1)
        return copies / total + output * (step.level.sigma / math.sqrt(total))
