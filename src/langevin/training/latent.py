"""Training of latent text-to-image models: pictures and captions become latents and states, a prediction has a cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..families.latents import LatentSpace
from ..families.sd import encode_ids
from .denoising import Denoiser
from .streams import Draw
from .trainables import Trainable
from .trainer import Losses


def whole_cells(where: Tensor, latents: Tensor) -> Tensor:
    """Return which places of latents have pixels that all count, (rows, 1, height, width)."""
    return -F.adaptive_max_pool2d(-where, latents.shape[-2:])


class TextToImage:
    """Trains parts of a Stable Diffusion pipeline on pictures under "pixels" and token ids under "ids".

    A batch may say under "shares" how much of every row counts, and under "where" which pixels do.

    Args:
        pipe: the pipeline, in float32; what is not trained is locked, and put into the type of the run.
        denoiser: the cost of a prediction.
        trained: what is trained.
        learning_rate: of all of it.
    """

    def __init__(self, pipe: Any, denoiser: Denoiser, trained: Sequence[Trainable], *, learning_rate: float) -> None:
        self.pipe, self.denoiser, self.trained, self.learning_rate = pipe, denoiser, trained, learning_rate
        self.networks: dict[str, nn.Module] = {}
        for part in trained:
            self.networks.update(part.networks)
        self.frozen = [
            module for name, module in pipe.components.items()
            if isinstance(module, nn.Module) and name not in self.networks
        ]  # fmt: skip
        for module in self.frozen:
            module.requires_grad_(False).eval()
        self.reads = "text_encoder" in self.networks

    def groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters."""
        return [{"params": part.parameters(), "lr": self.learning_rate} for part in self.trained]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what is not trained."""
        for module in self.frozen:
            module.to(device, dtype)

    def losses(self, batch: Mapping[str, Any], draw: Draw) -> Losses:
        """Return the losses of a batch."""
        with torch.no_grad():
            latents = self.latents(batch["pixels"], draw)
        with nullcontext() if self.reads else torch.no_grad():
            told = self.conditions(batch)
        where = whole_cells(batch["where"], latents) if "where" in batch else None
        shares, beside = batch.get("shares"), self.beside(batch)
        return self.denoiser(
            self.predictor(batch), latents, draw, conditions=told, beside=beside, shares=shares, where=where
        )

    def conditions(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the network is told of a batch, by the names of its arguments."""
        return {"encoder_hidden_states": self.states(batch["ids"])}

    def predictor(self, batch: Mapping[str, Any]) -> Callable[..., Any]:
        """Return what predicts for a batch, called as a UNet is."""
        return self.networks.get("unet", self.pipe.unet)

    def beside(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the channels that the network sees beside the samples of a batch."""
        return None

    def latents(self, pixels: Tensor, draw: Draw) -> Tensor:
        """Return the latents of pictures (rows, 3, height, width) in [-1, 1], drawn by the autoencoder's spread."""
        vae, space = self.pipe.vae, self.space(pixels)
        spread = vae.encode(pixels.to(vae.dtype)).latent_dist
        groups = len(pixels) // len(draw.positions)
        noise = [draw.normal(f"latent {k}" if k else "latent", spread.mean.shape[1:]) for k in range(groups)]
        return space.scale(spread.mean + spread.std * torch.cat(noise).to(spread.mean.dtype)).float()

    def space(self, pixels: Tensor) -> LatentSpace:
        """Return where the latents of pictures live."""
        return LatentSpace(self.pipe.vae, self.pipe.vae.config.latent_channels, *pixels.shape[-2:])

    def states(self, ids: Tensor) -> Tensor:
        """Return what the text encoder says of token ids (rows, tokens)."""
        return encode_ids(self.networks.get("text_encoder", self.pipe.text_encoder), ids)[0]

    def save(self, folder: Path) -> None:
        """Write what is trained."""
        for part in self.trained:
            part.save(folder)

    def load(self, folder: Path) -> None:
        """Read what is trained."""
        for part in self.trained:
            part.load(folder)
