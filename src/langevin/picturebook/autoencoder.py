"""The picturebook's autoencoder: 64x64 pictures become 16x16 latents of 4 channels.

It is the KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), trained without a critic.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.images import grid, to_images
from ..models.autoencoders.autoencoder_kl import AutoencoderKL
from .data import Scenes
from .loop import Budget, Recipe, Stage

EDGES, SQUARED, KL = 0.5, 5.0, 2e-6
"""Weights of the edge loss, the squared error and the Kullback-Leibler term, beside the absolute error's 1."""


def build() -> AutoencoderKL:
    """Return the untrained autoencoder (2.7 M parameters).

    Latents begin with little noise (a log variance near -6), or the decoder learns to ignore them.
    """
    model = AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    with torch.no_grad():
        model.quant_conv.bias[4:] = -6.0
    return model


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences between neighbouring pixels, across and down."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return the error of pixels and that of edges at full and half size.

    The edge terms stand in for a perceptual loss: blur costs little in pixels and much in edges. The squared error is
    there for colours, which an absolute error learns late: a wrong hue of a small thing costs it little.
    """
    pixels = (made - true).abs().mean() + SQUARED * (made - true).square().mean()
    sharp = made.new_zeros(())
    for _ in range(2):
        for a, b in zip(edges(made), edges(true), strict=True):
            sharp = sharp + (a - b).abs().mean()
        made, true = F.avg_pool2d(made, 2), F.avg_pool2d(true, 2)
    return pixels, sharp


class AutoencoderStage(Stage):
    """Trains the autoencoder on rendered pictures."""

    name = "autoencoder"
    recipe = Recipe(lr=1e-3, batch=8, warmup=50, average=0.995, betas=(0.9, 0.99), weight_decay=1e-4)
    budget = Budget(minutes=12)
    stale = ("latents.npy",)

    def __init__(self, folder: Path, scenes: Scenes, *, model: AutoencoderKL | None = None) -> None:
        self.folder, self.scenes = folder, scenes
        self.model = (model or build()).to(memory_format=torch.channels_last)

    def pictures(self, generator: torch.Generator) -> Tensor:
        """Draw a batch of pictures, shape (batch, 3, 64, 64)."""
        return self.scenes.images(torch.randint(len(self.scenes), (self.recipe.batch,), generator=generator))

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoded pictures and the mean Kullback-Leibler divergence per latent number."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            moments = self.model.quant_conv(self.model.encoder(images)).float()
            mean, log_variance = moments.chunk(2, dim=1)
            log_variance = log_variance.clamp(-20, 10)
            latents = mean + noise * torch.exp(0.5 * log_variance)
            made = self.model.decoder(self.model.post_quant_conv(latents)).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return made, kl

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        images = self.pictures(generator).to(self.device)
        noise = torch.randn(len(images), 4, 16, 16, generator=generator).to(self.device)
        made, kl = self.reconstruct(images, noise)
        pixels, sharp = reconstruction_loss(made, images)
        error = (made.detach() - images).square().mean(dim=(1, 2, 3)) / 4
        loss = pixels + EDGES * sharp + KL * kl
        return {"loss": loss, "pixels": pixels, "kl": kl, "psnr": -10 * error.log10().mean()}

    @torch.no_grad()
    def preview(self, step: int) -> None:
        images = self.scenes.images(torch.arange(8)).to(self.device)
        made = self.reconstruct(images, images.new_zeros(8, 4, 16, 16))[0]
        pictures = to_images(torch.cat([images, made.clamp(-1, 1)]))
        grid(pictures, rows=2, cols=8).resize((1024, 256), 0).save(self.folder / f"{self.name}.png")


class DecoderStage(AutoencoderStage):
    """Goes on with the decoder alone, so that pictures get sharper and the latents stay what the denoiser knows.

    Half of the pictures have their colour channels exchanged, so that a thing's shape does not tell its colour.
    """

    name = "decoder"
    recipe = Recipe(lr=5e-4, batch=8, warmup=50, average=0.995, weight_decay=1e-4)
    budget = Budget(minutes=10)
    stale = ()

    def __init__(self, folder: Path, scenes: Scenes, whole: AutoencoderKL) -> None:
        super().__init__(folder, scenes, model=whole)
        self.whole = whole
        self.model = nn.ModuleDict({"decoder": whole.decoder, "post_quant_conv": whole.post_quant_conv})

    def pictures(self, generator: torch.Generator) -> Tensor:
        images = super().pictures(generator)
        half = len(images) // 2
        order = torch.rand(half, 3, generator=generator).argsort(dim=1)
        images[:half] = images[:half].gather(1, order[:, :, None, None].expand_as(images[:half]))
        return images

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pictures decoded from mean latents with a little noise, as a denoiser would leave it, and 0."""
        latents = encode(self.whole, images)
        latents = latents + 0.03 * latents.std() * noise
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            made = self.whole.decoder(self.whole.post_quant_conv(latents)).float()
        return made, latents.new_zeros(())


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the mean latents of pictures, float32 and not yet scaled."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        moments = model.quant_conv(model.encoder(images))
    return moments.float().chunk(2, dim=1)[0]
