"""The picturebook's ControlNet: edges say where lines go (Zhang and Agrawala 2023, arXiv 2302.05543)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.files import atomic_folder
from ..core.images import grid, to_images
from ..models.autoencoders.autoencoder_kl import AutoencoderKL
from ..models.controlnets.controlnet import ControlNetModel
from ..models.unets.unet_2d_condition import UNet2DConditionModel
from .data import Scenes, cached
from .denoiser import DenoiserStage
from .edges import THRESHOLDS, condition, edges, outline_picture
from .loop import Budget, Recipe

WIDTHS = (16, 32, 96)
"""Widths of the layers that shrink the edges; each after the first halves the side, as the autoencoder does twice."""

UNTOLD = 0.5
"""Share of samples whose caption is left out, so that edges alone are understood too (Zhang and Agrawala, 3.3)."""


def cache_edges(folder: Path, scenes: Scenes) -> Tensor:
    """Return the edges of all scenes, bool of shape (scenes, 64, 64); kept in `folder`.

    The pairs of `THRESHOLDS` take turns, so that fine and coarse edges are understood.
    """

    def compute(rows: Tensor) -> Tensor:
        pictures, pairs = scenes.pictures[rows.numpy()], rows.numpy() % len(THRESHOLDS)
        outlines = np.empty(pictures.shape[:-1], dtype=bool)
        for pair, thresholds in enumerate(THRESHOLDS):
            outlines[pairs == pair] = edges(pictures[pairs == pair], thresholds)
        return torch.from_numpy(outlines)

    return cached(folder / "edges.npy", (len(scenes), 64, 64), 500, compute, dtype=np.bool_)


class ControlStage(DenoiserStage):
    """Trains a ControlNet that starts as a copy of the denoiser's first half; the denoiser stays as it is.

    Loss, noise levels and weights are those of the denoiser; what is added is the edges of each scene.

    Args:
        latents, states, untold, shown, vae: as for the denoiser's stage.
        outlines: (scenes, 64, 64), the edges of each scene, bool.
        shown_outlines: the edges that belong to `shown`, for previews.
        unet: the trained denoiser.
    """

    name = "control"
    recipe = Recipe(lr=5e-4, batch=64, warmup=100, average=0.998)
    budget = Budget(minutes=45)
    product = "control"
    left_out = UNTOLD

    def __init__(
        self,
        folder: Path,
        latents: Tensor,
        states: Tensor,
        outlines: Tensor,
        *,
        unet: UNet2DConditionModel,
        untold: Tensor,
        shown: Tensor,
        shown_outlines: Tensor,
        vae: AutoencoderKL | None = None,
    ) -> None:
        model = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS)
        super().__init__(folder, latents, states, untold=untold, shown=shown, vae=vae, model=model)
        self.unet = unet.requires_grad_(False).eval()
        self.unet.set_attention_backend("eager")
        self.outlines, self.shown_outlines = outlines, shown_outlines

    def to(self, device: torch.device) -> ControlStage:
        """Move the ControlNet and the denoiser to a device and return the stage."""
        super().to(device)
        self.unet.to(device)
        return self

    def told(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return what the denoiser's stage does, and the scenes' edges, (rows, 3, 64, 64)."""
        return (*super().told(rows, generator), condition(self.outlines[rows]))

    def predict(self, x: Tensor, t: Tensor, states: Tensor, *told: Tensor) -> Tensor:
        """Return the denoiser's v in float32, steered by edges (batch, 3, 64, 64)."""
        (picture,) = told
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            down, mid = self.model(x, t, states, picture, return_dict=False)
            steered = self.unet(
                x,
                t,
                states,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
                return_dict=False,
            )
        return steered[0].float()

    @torch.no_grad()
    def preview(self, step: int) -> None:
        """Write the edges of scenes that training does not know, and below them the pictures made from them."""
        if self.vae is None:
            return
        wanted = condition(self.shown_outlines)
        made = self.vae.decode(self.sample(self.shown, wanted, scale=2.0) / self.scale).sample
        above = [outline_picture(outline) for outline in self.shown_outlines.numpy()]
        sheet = grid([*above, *to_images(made)], rows=2, cols=len(above))
        sheet.resize((96 * len(above), 192), 0).save(self.folder / f"{self.name}-{step}.png")

    def write(self, path: Path) -> None:
        """Write the ControlNet into a folder, in half precision."""
        with atomic_folder(path) as partial:
            self.model.half().save_pretrained(partial)
