"""Training of latent text-to-image models: pictures and captions become latents and states, a prediction has a cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..families.latents import LatentSpace, scale_factor
from ..families.sd import encode_ids
from .data.memory import Memory
from .denoising import Denoiser
from .streams import Draw
from .trainables import Trainable
from .trainer import Losses


def whole_cells(where: Tensor, latents: Tensor) -> Tensor:
    """Return which places of latents have pixels that all count, (rows, 1, height, width)."""
    return -F.adaptive_max_pool2d(-where, latents.shape[-2:])


class TextToImage:
    """Trains parts of a Stable Diffusion pipeline on pictures under "pixels" and token ids under "ids".

    In place of pictures a batch may hold what the autoencoder said of them, "mean" and "std". It may say under "shares"
    how much of every row counts, and under "where" which pixels do.

    Args:
        pipe: the pipeline, in float32; what is not trained is locked, and put into the type of the run.
        denoiser: the cost of a prediction.
        trained: what is trained.
        learning_rate: of all of it.

    Attributes:
        encodes: the pictures of a batch that the autoencoder sees.
        memory: what the text encoder said before, if it is kept.
    """

    encodes: tuple[str, ...] = ("pixels",)

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
        self.reads = any(name.startswith("text_encoder") for name in self.networks)
        self.memory: Memory | None = None

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
        return self.recalled(batch, lambda: {"encoder_hidden_states": self.states(batch["ids"])})

    def recalled(self, batch: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what text encoders say of the tokens of a batch: what they said before, if that is kept."""
        if self.memory is None or self.reads or "said" not in batch:
            return dict(compute())
        return self.memory(batch["said"], compute)

    def predictor(self, batch: Mapping[str, Any]) -> Callable[..., Any]:
        """Return what predicts for a batch, called as a UNet is."""
        return self.networks.get("unet", self.pipe.unet)

    def beside(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the channels that the network sees beside the samples of a batch."""
        return None

    def latents(self, pixels: Tensor | Mapping[str, Tensor], draw: Draw) -> Tensor:
        """Return latents drawn by the autoencoder's spread for pictures, see `spread`."""
        mean, std = self.spread(pixels)
        groups = len(mean) // len(draw.positions)
        noise = [draw.normal(f"latent {k}" if k else "latent", mean.shape[1:]) for k in range(groups)]
        return self.space(mean).scale(mean + std * torch.cat(noise).to(mean.dtype)).float()

    def spread(self, pixels: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation that the autoencoder gives pictures, both unscaled.

        Args:
            pixels: pictures (rows, 3, height, width) in [-1, 1], or what was said of them before, "mean" and "std".
        """
        if isinstance(pixels, Mapping):
            return pixels["mean"], pixels["std"]
        spread = self.pipe.vae.encode(pixels.to(self.pipe.vae.dtype)).latent_dist
        return spread.mean, spread.std

    def space(self, mean: Tensor) -> LatentSpace:
        """Return where latents (rows, channels, height, width) live."""
        factor = scale_factor(self.pipe.vae)
        return LatentSpace(self.pipe.vae, mean.shape[1], mean.shape[2] * factor, mean.shape[3] * factor)

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
