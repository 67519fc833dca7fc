"""Projections of cross-attentions that are trained beside a network's own, as Custom Diffusion does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapters import custom_diffusion
from ..adapters.files import open_source
from ..nn.processors import named_attentions
from ..weights.dialects import custom_diffusion as dialect

KINDS = {"crossattn_kv": False, "crossattn": True}
"""Name of what is trained -> whether queries and outputs are trained beside keys and values."""
FILE = dialect.FILES[1]
"""Where they are kept."""


class Projections:
    """Keys and values of a UNet's cross-attentions, and queries and outputs if asked (Kumari et al. 2023, 2212.04488).

    Args:
        unet: otherwise locked.
        kind: a name in `KINDS`.

    Raises:
        ConfigError: for a UNet without cross-attention.
    """

    def __init__(self, unet: Any, kind: str = "crossattn_kv") -> None:
        self.unet = unet.requires_grad_(False).float()
        self.networks: Mapping[str, nn.Module] = {"unet": unet}
        self.trained = custom_diffusion.begin(unet, outputs=KINDS[kind])

    def parameters(self) -> list[nn.Parameter]:
        """Return the projections."""
        return self.trained

    def save(self, folder: Path) -> None:
        """Write pytorch_custom_diffusion_weights.bin."""
        custom_diffusion.save(self.unet, folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read it into the same projections."""
        attentions = dict(named_attentions(self.unet))
        for name, parts in dialect.parse(open_source(folder, weight_name=FILE).state).items():
            attentions[name].processor.load_state_dict(parts)
