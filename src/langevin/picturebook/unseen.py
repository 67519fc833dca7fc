"""What the picturebook's training never showed: a style and a character, for adapters to learn from few pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..models.autoencoders.autoencoder_kl import AutoencoderKL
from .captions import describe
from .data import signed
from .drawing import Rgb
from .world import Scene, render, sample_scene

SEPIA: tuple[Rgb, ...] = ((46, 30, 24), (150, 104, 66), (226, 196, 146), (252, 242, 220))
"""The tones of the unseen style, from ink to paper."""

BRIGHTNESS = (0.299, 0.587, 0.114)
"""Share of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""

WORD = "<mika>"
"""The word for the unseen character."""

LOOK = ("purple", "cat")
"""What the character is: a colour and a kind that never come together in the model's own training."""

BEGUN = ("white", "cat")
"""Known words with whose vectors the word begins, one for each of its own."""

INKED = 0.5
"""How much darker a sharp edge becomes."""


def tones(brightness: np.ndarray) -> np.ndarray:
    """Return the tones of `SEPIA`, float RGB (..., 3), for brightnesses (...) between 0 and 1."""
    marks = np.linspace(0, 1, len(SEPIA))
    return np.stack([np.interp(brightness, marks, channel) for channel in zip(*SEPIA, strict=True)], axis=-1)


def sepia(picture: np.ndarray) -> np.ndarray:
    """Redraw a picture, uint8 of shape (height, width, 3), in the unseen style: brown ink on paper, edges inked."""
    drawn = picture.astype(np.float32)
    across = np.abs(np.diff(drawn, axis=1, prepend=drawn[:, :1])).max(-1)
    down = np.abs(np.diff(drawn, axis=0, prepend=drawn[:1])).max(-1)
    ink = np.clip((np.maximum(across, down) - 20) / 90, 0, 1)
    return tones((drawn @ np.float32(BRIGHTNESS) / 255) * (1 - INKED * ink)).round().astype(np.uint8)


def distance(picture: np.ndarray) -> float:
    """Return how far a picture's colours are from the nearest tones of the unseen style, on average, of 255."""
    drawn = np.asarray(picture, dtype=np.float32).reshape(-1, 1, 3)
    return float(np.linalg.norm(drawn - tones(np.linspace(0, 1, 65)), axis=-1).min(axis=1).mean())


@dataclass(frozen=True)
class Lesson:
    """Pictures to learn from.

    Attributes:
        pictures: uint8 of shape (n, 64, 64, 3).
        captions: n captions.
    """

    pictures: np.ndarray
    captions: list[str]


def style_lesson(count: int) -> Lesson:
    """Return flat scenes redrawn in the unseen style; their captions say nothing of a style."""
    return _lesson(count, lambda scene: scene, sepia)


def word_lesson(count: int) -> Lesson:
    """Return flat scenes with the unseen character, whose captions call it by its word."""
    colour, kind = LOOK

    def cast(scene: Scene) -> Scene:
        return replace(scene, things=(replace(scene.things[0], colour=colour, kind=kind, count=1), *scene.things[1:]))

    lesson = _lesson(count, cast, lambda picture: picture)
    return Lesson(lesson.pictures, [caption.replace(f"{colour} {kind}", WORD) for caption in lesson.captions])


def _lesson(count: int, change: Callable[[Scene], Scene], redraw: Callable[[np.ndarray], np.ndarray]) -> Lesson:
    rng = np.random.default_rng([0, 2])
    scenes = [change(replace(sample_scene(rng), style="flat")) for _ in range(count)]
    return Lesson(np.stack([redraw(render(scene)) for scene in scenes]), [describe(scene, rng) for scene in scenes])


def latents_of(vae: AutoencoderKL, pictures: np.ndarray, *, steps: int, lr: float = 0.15) -> Tensor:
    """Return latents (n, 4, 16, 16) from which the decoder draws the pictures, found by descent from the encoder's.

    The shipped encoder takes colours that it never saw for known ones; the decoder can draw more than the encoder says.

    Args:
        steps: of the descent; 0 leaves the encoder's.
        lr: step as a share of the latents' spread.
    """
    vae.requires_grad_(False)
    wanted = signed(pictures)
    with torch.no_grad():
        latents = vae.encode(wanted).latent_dist.mean
    latents = latents.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=lr * float(latents.detach().std()))
    for _ in range(steps):
        optimizer.zero_grad()
        (vae.decode(latents).sample - wanted).square().mean().backward()
        optimizer.step()
    return latents.detach()
