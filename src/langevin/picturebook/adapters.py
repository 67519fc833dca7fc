"""Teaches the shipped model what it has not seen: `python -m langevin.picturebook.adapters style`, or `word`.

    style   a LoRA (Hu et al. 2021, 2106.09685) on attentions and residual blocks learns to draw in sepia
    word    vectors of a word, all else locked (textual inversion, Gal et al. 2022, 2208.01618), learn one thing's look

Loss and noise levels are those of the denoiser's own training. Lessons are drawn, see `unseen`. Both go on from their
checkpoints in --folder, and write the file that the package ships.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.stack import stack_of
from ..core.files import atomic_file
from ..core.weights_io import write_safetensors
from ..pipelines.stable_diffusion import StableDiffusionPipeline
from ..weights.dialects import lora, textual_inversion
from ..weights.dialects.parts import Parts
from . import model_folder, unseen
from .denoiser import DenoiserStage
from .loop import Budget, Recipe, fit
from .train import HOME

RANK = 4
NAME = "sepia"
"""Name of the style's adapter and file."""

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
"""What the layers are called that the style changes."""


class AdapterStage(DenoiserStage):
    """Trains what is added to the denoiser, which stays as it is.

    Args:
        pipe: the shipped pipeline in float32.
        latents: (n, 4, 16, 16), of the lesson's pictures, not yet scaled.
        captions: n captions.
        trained: the parameters to train.
    """

    def __init__(
        self,
        folder: Path,
        pipe: StableDiffusionPipeline,
        latents: Tensor,
        captions: Sequence[str],
        trained: Sequence[Any],
    ) -> None:
        self.pipe = pipe
        with torch.no_grad():
            untold, *shown = (self.read([text])[0] for text in ("", *captions[:12]))
            states = torch.cat([self.read(captions[k : k + 50]) for k in range(0, len(captions), 50)])
        super().__init__(
            folder, latents, states, untold=untold, shown=torch.stack(shown), vae=pipe.vae, model=pipe.unet
        )
        self.unet, self.model = self.model, nn.ParameterList(trained)
        self.scale = pipe.vae.config.scaling_factor

    def read(self, captions: Sequence[str]) -> Tensor:
        """Return the text states of captions (n, 32, 256)."""
        ids = self.pipe.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.pipe.text_encoder(ids).last_hidden_state

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

    def __init__(self, folder: Path, pipe: StableDiffusionPipeline, latents: Tensor, captions: Sequence[str]) -> None:
        pipe.unet.requires_grad_(False)
        stack = stack_of(pipe.unet)
        stack.add(NAME, fresh(pipe.unet, RANK), trainable=True)
        trained = [weight for path in stack.layers(NAME) for weight in stack.delta(NAME, path).parameters()]
        super().__init__(folder, pipe, latents, captions, trained)

    def save(self, path: Path) -> None:
        """Write the LoRA in half precision."""
        parts = {
            place: replace(part, tensors={name: tensor.detach().half() for name, tensor in part.tensors.items()})
            for place, part in stack_of(self.unet).parts(NAME).items()
        }
        with atomic_file(path) as partial:
            write_safetensors(partial, *lora.write({"unet": parts}, metadata={"format": "pt"}))


class WordStage(AdapterStage):
    """Trains the vectors of a word that the captions say, from those of words that are known.

    Args:
        word: the word to learn.
        begun: for each of its vectors a known word to begin with.
    """

    name = "word"
    recipe = Recipe(lr=5e-3, batch=16, warmup=20, average=0.98, weight_decay=0.0)

    def __init__(
        self,
        folder: Path,
        pipe: StableDiffusionPipeline,
        latents: Tensor,
        captions: Sequence[str],
        *,
        word: str,
        begun: Sequence[str],
    ) -> None:
        pipe.unet.requires_grad_(False)
        pipe.text_encoder.requires_grad_(False)
        table = pipe.text_encoder.get_input_embeddings().weight
        start = table[pipe.tokenizer.convert_tokens_to_ids([f"{each}</w>" for each in begun])].clone()
        pipe.load_textual_inversion({word: start})
        self.word, self.known = word, table.detach()
        self.captions = pipe.maybe_convert_prompt(list(captions), pipe.tokenizer)
        super().__init__(folder, pipe, latents, captions, [nn.Parameter(start)])

    def told(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return what the denoiser's stage does, the states read with the present vectors."""
        x0, t, states = super().told(rows, generator)
        told = (states != self.untold).flatten(1).any(1)
        return (
            x0,
            t,
            torch.where(told[:, None, None], self.reread([self.captions[k] for k in rows.tolist()]), self.untold),
        )

    def reread(self, captions: Sequence[str]) -> Tensor:
        """Return the text states of captions, through which the vectors learn."""
        ids = self.pipe.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        encoder = self.pipe.text_encoder
        name = next(n for n, weight in encoder.named_parameters() if weight is encoder.get_input_embeddings().weight)
        table = torch.cat([self.known, self.model[0]])
        return torch.func.functional_call(encoder, {name: table}, (ids,)).last_hidden_state

    def preview(self, step: int) -> None:
        """Write pictures from the lesson's captions."""
        with torch.no_grad():
            self.shown = self.reread(self.captions[:12])
        super().preview(step)

    def save(self, path: Path) -> None:
        """Write the word in the diffusers layout."""
        textual_inversion.write(path, {self.word: {"text_encoder": self.model[0].detach()}})


def fresh(model: nn.Module, rank: int) -> dict[str, Parts]:
    """Return an adapter that changes nothing yet: `down` random, `up` zero, for the layers of `LAYERS`."""
    parts = {}
    for path, layer in model.named_modules():
        if path.endswith(LAYERS) and isinstance(layer, (nn.Linear, nn.Conv2d)):
            out, inside, *kernel = layer.weight.shape
            down = torch.randn(rank, inside, *kernel) / (inside * max(1, len(kernel) and kernel[0] * kernel[1])) ** 0.5
            parts[path] = Parts("lora", {"down": down, "up": torch.zeros(out, rank, *(1 for _ in kernel))}, alpha=rank)
    return parts


def pipeline() -> StableDiffusionPipeline:
    """Return the shipped pipeline in float32."""
    pipe = StableDiffusionPipeline.from_pretrained(model_folder(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stage(name: str, folder: Path, count: int) -> Any:
    """Return a stage, its lesson drawn and encoded; the latents are kept in `folder`."""
    torch.manual_seed(0)
    pipe = pipeline()
    lesson = unseen.style_lesson(count) if name == "style" else unseen.word_lesson(count)
    path = folder / f"{name}-latents.pt"
    if not path.exists():
        with atomic_file(path) as partial:
            torch.save(unseen.latents_of(pipe.vae, lesson.pictures, steps=30 if name == "style" else 0), partial)
    latents = torch.load(path, weights_only=True)
    if name == "style":
        return StyleStage(folder, pipe, latents, lesson.captions)
    return WordStage(folder, pipe, latents, lesson.captions, word=unseen.WORD, begun=unseen.BEGUN)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what the command line names, and write its file."""
    parser = argparse.ArgumentParser(
        prog="python -m langevin.picturebook.adapters",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("name", choices=("style", "word"), help="what to train")
    parser.add_argument("--steps", type=int, default=550, help="how many steps in all (default: 550)")
    parser.add_argument("--pictures", type=int, default=96, help="pictures of the lesson (default: 96)")
    parser.add_argument("--folder", type=Path, default=HOME, help=f"checkpoints and latents (default: {HOME})")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the CPU")
    parser.add_argument("--output", type=Path, help="the file to write (default: adapter.safetensors in --folder)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    made = stage(chosen.name, chosen.folder, chosen.pictures)
    for line in fit(made, Budget(steps=chosen.steps)):
        print(line, flush=True)
    made.save(chosen.output or chosen.folder / f"{chosen.name}.safetensors")


if __name__ == "__main__":
    main()
