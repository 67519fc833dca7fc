"""Adapters that teach the shipped model what it has not seen, from few pictures; `unseen` draws them.

    style   a LoRA (Hu et al. 2021, 2106.09685) on attentions and residual blocks learns to draw in sepia
    word    vectors of a word, all else locked (textual inversion, Gal et al. 2022, 2208.01618), learn one thing's look

Loss and noise levels are those of the denoiser's own training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import lora
from ..core.errors import InputError
from ..pipelines.stable_diffusion import StableDiffusionPipeline
from ..weights.dialects import textual_inversion
from . import tokenizer
from .data import cached
from .denoiser import DenoiserStage
from .loop import Budget, Recipe
from .unseen import BEGUN, WORD, Lesson, latents_of

NAME = "sepia"
"""Name of the style's adapter."""

LORA = {"r": 4, "target_modules": ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")}
"""The rank of the style's adapter, and what the layers are called that it changes."""


class AdapterStage(DenoiserStage):
    """Trains what is added to the denoiser, which stays as it is.

    Args:
        pipe: a pipeline in float32, whose parts are locked.
        lesson: what to learn from.
        trained: the parameters to train.
    """

    descent = 0
    """Steps by which the lesson's latents are sought through the decoder."""

    def __init__(
        self, folder: Path, pipe: StableDiffusionPipeline, lesson: Lesson, trained: Sequence[nn.Parameter]
    ) -> None:
        self.pipe = pipe
        pictures, captions = lesson.pictures, lesson.captions
        latents = cached(
            folder / f"{self.name}-latents.npy",
            (len(pictures), 4, 16, 16),
            16,
            lambda rows: latents_of(pipe.vae, pictures[rows.numpy()], steps=self.descent),
            dtype=np.float32,
        )
        with torch.no_grad():
            untold, *shown = (self.states_of([text])[0] for text in ("", *captions[:12]))
            states = torch.cat([self.states_of(captions[k : k + 50]) for k in range(0, len(captions), 50)])
        super().__init__(
            folder, latents, states, untold=untold, shown=torch.stack(shown), vae=pipe.vae, model=pipe.unet
        )
        self.unet, self.model = self.model, nn.ParameterList(trained)
        self.scale = pipe.vae.config.scaling_factor

    def to(self, device: torch.device) -> AdapterStage:
        """Stay on the CPU.

        Raises:
            InputError: for another device.
        """
        if device.type != "cpu":
            raise InputError(f"The stage {self.name} is small and trains on the CPU; leave out --device {device}.")
        return self

    def states_of(self, captions: Sequence[str]) -> Tensor:
        """Return the text states of captions (n, 32, 256)."""
        return self.pipe.text_encoder(tokenizer.encode(self.pipe.tokenizer, captions)).last_hidden_state

    def predict(self, x: Tensor, t: Tensor, states: Tensor, *told: Tensor) -> Tensor:
        """Return v, in full precision."""
        return self.unet(x, t, states, return_dict=False)[0]

    def matrices(self) -> Iterator[nn.Parameter]:
        """Yield nothing: AdamW is enough for so few numbers."""
        return iter(())


class StyleStage(AdapterStage):
    """Trains a LoRA on pictures of a style, whose captions say nothing of it."""

    name = "style"
    recipe = Recipe(lr=2e-3, batch=16, warmup=20, average=0.98, weight_decay=0.0)
    budget = Budget(steps=550)
    product = "sepia.safetensors"
    descent = 30

    def __init__(self, folder: Path, pipe: StableDiffusionPipeline, lesson: Lesson) -> None:
        pipe.unet.requires_grad_(False)
        pipe.unet.add_adapter(LORA, NAME)
        super().__init__(folder, pipe, lesson, [weight for weight in pipe.unet.parameters() if weight.requires_grad])

    def write(self, path: Path) -> None:
        """Write the LoRA in half precision."""
        lora.save({"unet": self.unet}, path.parent, dtype=torch.float16, weight_name=path.name)


class WordStage(AdapterStage):
    """Trains the vectors of a word that the captions say, from those of words that are known."""

    name = "word"
    recipe = Recipe(lr=5e-3, batch=16, warmup=20, average=0.98, weight_decay=0.0)
    budget = Budget(steps=280)
    product = "mika.safetensors"

    def __init__(self, folder: Path, pipe: StableDiffusionPipeline, lesson: Lesson) -> None:
        pipe.unet.requires_grad_(False)
        pipe.text_encoder.requires_grad_(False)
        table = pipe.text_encoder.get_input_embeddings().weight
        start = table[pipe.tokenizer.convert_tokens_to_ids([f"{each}</w>" for each in BEGUN])].clone()
        pipe.load_textual_inversion({WORD: start})
        self.known = table.detach()
        captions = pipe.maybe_convert_prompt(lesson.captions, pipe.tokenizer)
        self.ids = tokenizer.encode(pipe.tokenizer, captions)
        super().__init__(folder, pipe, Lesson(lesson.pictures, captions), [nn.Parameter(start)])

    def read(self, rows: Tensor, wording: Tensor) -> Tensor:
        """Return the text states of captions, read with the present vectors, which learn through them."""
        encoder = self.pipe.text_encoder
        name = next(n for n, weight in encoder.named_parameters() if weight is encoder.get_input_embeddings().weight)
        table = torch.cat([self.known, self.model[0]])
        return torch.func.functional_call(encoder, {name: table}, (self.ids[rows],)).last_hidden_state

    @torch.no_grad()
    def preview(self, step: int) -> None:
        """Write pictures from the lesson's captions."""
        first = torch.arange(len(self.shown))
        self.shown = self.read(first, torch.zeros_like(first))
        super().preview(step)

    def write(self, path: Path) -> None:
        """Write the word in the diffusers layout."""
        textual_inversion.write(path, {WORD: {"text_encoder": self.model[0].detach()}})
