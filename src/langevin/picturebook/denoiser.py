"""The picturebook's denoiser: a small UNet learns to remove noise from latents, told by a caption what they show.

The parameterisation is v (Salimans and Ho 2022, arXiv 2202.00512) on DDPM's linear schedule (Ho et al. 2020, arXiv
2006.11239), whose last level holds almost no signal, so that dark and bright pictures can be begun from noise alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.images import grid, to_images
from ..models.autoencoders.autoencoder_kl import AutoencoderKL
from ..models.unets.unet_2d_condition import UNet2DConditionModel
from ..schedulers.preserving import DDIMScheduler
from .autoencoder import encode
from .clip import WIDTH, text_states
from .data import Scenes, cached
from .loop import Budget, Recipe, Stage

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
}
GAMMA = 5.0
"""Cap of a clean sample's weight, as in min-SNR (Hang et al. 2023, arXiv 2303.09556).

An error of v is an error of the clean sample times SNR + 1 (Salimans and Ho). Low noise levels are capped at GAMMA;
high ones keep their weight of 1, where min-SNR lets it fall: at 16x16 they are where shapes are decided.
"""

TIMES = (0.3, 1.0)
"""Mean and spread of the logit of training times (Esser et al. 2024, arXiv 2403.03206)."""

UNTOLD = 0.1
"""Share of samples whose caption is left out, for classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

PROMPTS = (
    "a red house under a yellow sun, night",
    "a green tree to the left of a pink flower",
    "a blue fish, sea",
    "two orange cats in a meadow",
    "a purple balloon above a black car, desert",
    "a small white bird in the snow",
    "a brown mushroom, pixel style",
    "a red heart above a blue star, chalk style",
    "a yellow kite over a green house, meadow",
    "a white boat to the right of a red tree, sea",
    "a pink moon, night, outline style",
    "a green boat by the sea",
)
"""Prompts of the pictures to look at during training."""


def build() -> UNet2DConditionModel:
    """Return the untrained UNet (8.1 M parameters).

    Transformers stand at 8x8 and 4x4; on a CPU the 16x16 level costs as much as both, so it has none. Beside
    cross-attention, the pooled text is added to the time embedding, so that every block knows what is asked for.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        norm_num_groups=16,
    )


def signal_levels() -> Tensor:
    """Return the squared signal scale (alpha bar) of every timestep, float32."""
    start, end, count = (SCHEDULE[name] for name in ("beta_start", "beta_end", "num_train_timesteps"))
    betas = torch.linspace(start, end, count, dtype=torch.float64)
    return (1 - betas).cumprod(0).float()


def cache_latents(folder: Path, scenes: Scenes, vae: AutoencoderKL) -> Tensor:
    """Return the mean latents of all scenes, float16 of shape (scenes, 4, 16, 16), not yet scaled; kept in `folder`."""
    vae = vae.eval().to(memory_format=torch.channels_last)
    return cached(folder / "latents.npy", (len(scenes), 4, 16, 16), 100, lambda rows: encode(vae, scenes.images(rows)))


def cache_states(folder: Path, ids: Tensor, text_encoder: nn.Module) -> Tensor:
    """Return the text states of all captions, float16 of shape (captions, 32, 256); kept in `folder`."""
    flat = ids.flatten(0, 1)
    text_encoder.eval()
    shape = (len(flat), flat.shape[1], WIDTH)
    return cached(folder / "states.npy", shape, 250, lambda rows: text_states(text_encoder, flat[rows]))


class DenoiserStage(Stage):
    """Trains the UNet on cached latents and cached text states.

    Args:
        latents: (scenes, 4, 16, 16), scaled here to unit variance.
        states: (scenes * wordings, length, width), the wordings of a scene in a row.
        untold: (length, width), the states of the empty prompt.
        shown: (prompts, length, width), the states of `PROMPTS`, for previews.
    """

    name = "unet"
    recipe = Recipe(lr=7e-4, batch=64, warmup=200, average=0.999, betas=(0.9, 0.99))
    budget = Budget(minutes=90)
    left_out = UNTOLD
    """Share of samples whose caption is left out."""
    preview_steps = 25

    def __init__(
        self,
        folder: Path,
        latents: Tensor,
        states: Tensor,
        *,
        untold: Tensor,
        shown: Tensor,
        vae: AutoencoderKL | None = None,
        model: Any = None,
    ) -> None:
        self.folder, self.latents, self.states = folder, latents, states
        self.untold, self.shown, self.vae = untold, shown, vae
        self.scale = scaling_factor(latents)
        self.wordings = len(states) // len(latents)
        self.model = model or build()
        self.model.set_attention_backend("eager")  # the fastest to train for 64 queries and 32 keys
        alphas = signal_levels()
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()
        ratio = alphas / (1 - alphas)
        self.weight = (ratio + 1).clamp(max=GAMMA) / (ratio + 1)

    def matrices(self) -> Iterator[nn.Parameter]:
        for name, weight in self.model.named_parameters():
            if weight.ndim > 1 and not name.startswith(("conv_in", "conv_out")):
                yield weight

    def predict(self, x: Tensor, t: Tensor, states: Tensor, *told: Tensor) -> Tensor:
        """Return the UNet's v in float32; a subclass may be told more than text."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.model(x, t, states, return_dict=False)[0].float()

    def batch(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw scenes; return their clean latents, timesteps, and what the model is told about them, see `told`."""
        rows = torch.randint(len(self.latents), (self.recipe.batch,), generator=generator)
        return self.told(rows, generator)

    def told(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return clean latents, timesteps spread evenly over their distribution, and text states with some left out."""
        count = len(rows)
        wording = torch.randint(self.wordings, (count,), generator=generator)
        told = torch.rand(count, 1, 1, generator=generator) >= self.left_out
        states = torch.where(told, self.read(rows, wording), self.untold)
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        x0 = self.latents[rows].float() * self.scale
        mean, width = TIMES
        times = torch.sigmoid(mean + width * torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4)))
        return x0, (times * len(self.signal)).long(), states

    def read(self, rows: Tensor, wording: Tensor) -> Tensor:
        """Return the text states of scenes in one of their wordings each, (rows, length, width)."""
        return self.states[rows * self.wordings + wording].float()

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        x0, t, *told = self.batch(generator)
        eps = torch.randn(x0.shape, generator=generator)
        levels = torch.stack([self.signal[t], self.noise[t], self.weight[t]])
        x0, t, eps, levels, *told = (each.to(self.device) for each in (x0, t, eps, levels, *told))
        signal, noise = levels[:2, :, None, None, None]
        v = self.predict(signal * x0 + noise * eps, t, *told)
        error = (v - (signal * eps - noise * x0)).square().mean(dim=(1, 2, 3))
        return {"loss": (levels[2] * error).mean(), "error": error.mean()}

    @torch.no_grad()
    def preview(self, step: int) -> None:
        if self.vae is None:
            return
        made = self.vae.decode(self.sample(self.shown) / self.scale).sample
        grid(to_images(made), rows=2, cols=6).resize((1152, 384), 0).save(self.folder / f"{self.name}-{step}.png")

    def sample(self, states: Tensor, *told: Tensor, scale: float = 3.0) -> Tensor:
        """Return scaled latents for text states, on the CPU, by DDIM with classifier-free guidance from seed 0.

        Args:
            told: what `predict` takes beside the text, the same with and without it.
        """
        scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(self.preview_steps)
        x = torch.randn(len(states), 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(self.device)
        both = torch.cat([self.untold.expand_as(states), states]).to(self.device)
        more = [torch.cat([each, each]).to(self.device) for each in told]
        for t in scheduler.timesteps:
            without, with_text = self.predict(torch.cat([x, x]), t, both, *more).chunk(2)
            x = scheduler.step(without + scale * (with_text - without), t, x).prev_sample
        return x.cpu()


def scaling_factor(latents: Tensor) -> float:
    """Return the number that brings latents to unit variance, measured on at most 5000 pictures."""
    return round(1 / float(latents[:5000].float().std()), 4)
