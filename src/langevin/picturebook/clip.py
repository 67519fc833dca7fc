"""The picturebook's CLIP: a text and a vision tower that agree on which caption belongs to which picture.

Contrastive training follows Radford et al. (2021, arXiv 2103.00020). Two additions make it learn in minutes: every
caption brings a spoilt copy with one detail wrong, and both towers must also name the facts of the scene.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import tokenizer as bpe
from .data import CAPTIONS, FIELDS, Scenes, cached
from .loop import Budget, Recipe, Stage
from .world import COLOURS, KINDS

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

WIDTH = 256
FACTS = 0.5
"""Weight of the fact losses beside the contrastive loss's 1."""

_OPPOSITES = (("left", "right"), ("above", "below"), ("over", "under"))
CHANNEL_MEAN, CHANNEL_SPREAD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


def build(words: CLIPTokenizer) -> CLIPModel:
    """Return the untrained towers (5.3 M parameters).

    The text tower has 4 layers of width 256, the vision tower 4 of width 192 on patches of 8x8 pixels.
    """
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": bpe.LENGTH,
        "projection_dim": WIDTH,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def tokens(folder: Path, scenes: Scenes, words: CLIPTokenizer) -> Tensor:
    """Return the captions' tokens, int64 of shape (scenes, wordings, 32); kept in `folder`."""

    def read(rows: Tensor) -> Tensor:
        flat = [caption for row in rows.tolist() for caption in scenes.captions[row]]
        return bpe.encode(words, flat).reshape(len(rows), CAPTIONS, bpe.LENGTH)

    shape = (len(scenes), CAPTIONS, bpe.LENGTH)
    return cached(folder / "tokens.npy", shape, 1000, read, dtype=np.int16).long()


class Spoiler:
    """Puts one mistake into a caption: colours or kinds swapped or changed, or the opposite relation."""

    def __init__(self, words: CLIPTokenizer) -> None:
        def number(word: str) -> int:
            return words.convert_tokens_to_ids(word + "</w>")

        self.colours = torch.tensor([number(colour) for colour in COLOURS])
        self.kinds = torch.tensor([number(kind) for kind in KINDS])
        self.opposites = torch.arange(len(words))
        for one, other in _OPPOSITES:
            self.opposites[number(one)], self.opposites[number(other)] = number(other), number(one)

    def _exchange(self, row: Tensor, options: Tensor, generator: torch.Generator) -> Tensor:
        """Swap the two words of `options` in the row, or change the only one."""
        places = torch.isin(row, options).nonzero().flatten()
        spoilt = row.clone()
        if len(places) > 1 and row[places[0]] != row[places[1]]:
            spoilt[places] = row[places].flip(0)
        elif len(places):
            shift = torch.randint(1, len(options), (1,), generator=generator)
            place = places[:1]
            spoilt[place] = options[((options == row[place]).nonzero()[0] + shift) % len(options)]
        return spoilt

    def __call__(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return rows of tokens, each with one mistake (two plural things may stay as they are)."""
        spoilt = []
        for row, choice in zip(rows, torch.randint(3, (len(rows),), generator=generator).tolist(), strict=True):
            opposite = self.opposites[row]
            if choice == 0 and not torch.equal(opposite, row):
                spoilt.append(opposite)
            else:
                spoilt.append(self._exchange(row, (self.colours, self.kinds)[choice % 2], generator))
        return torch.stack(spoilt)


class Facts(nn.Module):
    """Linear answers to the questions of `FIELDS`."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = nn.Linear(WIDTH, sum(options for _, options in FIELDS))

    def forward(self, states: Tensor, facts: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy and the share of right answers; states (..., 256), facts (..., fields)."""
        loss, right = 0, 0
        for guess, truth in zip(self.answers(states).split([o for _, o in FIELDS], -1), facts.unbind(-1), strict=True):
            each = F.cross_entropy(guess.movedim(-1, 1), truth, reduction="none")
            hits = (guess.argmax(-1) == truth).float()
            share = torch.full_like(each, 1 / each.numel()) if weight is None else weight / weight.sum()
            loss, right = loss + (each * share).sum(), right + (hits * share).sum()
        return loss / len(FIELDS), right / len(FIELDS)


class ClipStage(Stage):
    """Trains both towers, and the two readouts of facts, which are thrown away afterwards."""

    name = "clip"
    recipe = Recipe(lr=1e-3, batch=96, warmup=100, average=0.99, betas=(0.9, 0.98), weight_decay=0.05)
    budget = Budget(minutes=6)
    stale = ("states.npy",)

    def __init__(self, folder: Path, scenes: Scenes, ids: Tensor, words: CLIPTokenizer) -> None:
        self.folder, self.scenes, self.ids, self.words = folder, scenes, ids, words
        self.spoil = Spoiler(words)
        self.model = nn.ModuleDict({"clip": build(words), "text facts": Facts(), "vision facts": Facts()})
        self.clip = self.model["clip"]

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(self.scenes), (self.recipe.batch,), generator=generator)
        wording = torch.randint(self.ids.shape[1], (len(rows),), generator=generator)
        ids, facts = self.ids[rows, wording], self.scenes.facts[rows].to(self.device)
        both = torch.cat([ids, self.spoil(ids, generator)]).to(self.device)
        images = self.scenes.images(rows).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            text = self.clip.text_model(input_ids=both)
            texts = F.normalize(self.clip.text_projection(text.pooler_output).float(), dim=-1)
            vision = self.clip.vision_model(pixel_values=normalise(images))
            seen = self.clip.visual_projection(vision.pooler_output).float()
        scale = self.clip.logit_scale.clamp(max=4.6).exp()
        logits = scale * F.normalize(seen, dim=-1) @ texts.T
        target = torch.arange(len(rows), device=self.device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(rows)].T, target)) / 2
        states = text.last_hidden_state[: len(rows)].float()
        after = (both[: len(rows)] == self.words.eos_token_id).float()
        told, text_right = self.model["text facts"](states, facts[:, None].expand(-1, ids.shape[1], -1), after)
        shown, vision_right = self.model["vision facts"](F.normalize(seen, dim=-1) * WIDTH**0.5, facts)
        matched = (logits.argmax(-1) == target).float().mean()
        loss = contrast + FACTS * (told + shown)
        return {"loss": loss, "matched": matched, "text facts": text_right, "vision facts": vision_right}


class TextStage(ClipStage):
    """Goes on with a copy of the text tower on facts alone, for the denoiser; the pair of towers stays as it is.

    With no pictures to look at it sees several times as many captions, and learns which colour belongs to which thing
    and which thing is on which side.
    """

    name = "text"
    recipe = Recipe(lr=1e-3, batch=128, warmup=50, average=0.99, betas=(0.9, 0.98), weight_decay=0.05)
    budget = Budget(minutes=5)

    def __init__(self, begun: ClipStage) -> None:
        super().__init__(begun.folder, begun.scenes, begun.ids, begun.words)
        self.tower = copy.deepcopy(begun.clip.text_model)
        self.model = nn.ModuleDict({"text": self.tower, "facts": copy.deepcopy(begun.model["text facts"])})

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(self.scenes), (self.recipe.batch,), generator=generator)
        ids = self.ids[rows, torch.randint(self.ids.shape[1], (len(rows),), generator=generator)].to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            states = self.tower(input_ids=ids).last_hidden_state.float()
        facts = self.scenes.facts[rows][:, None].expand(-1, ids.shape[1], -1).to(self.device)
        loss, right = self.model["facts"](states, facts, (ids == self.words.eos_token_id).float())
        return {"loss": loss, "text facts": right}


def normalise(images: Tensor) -> Tensor:
    """Return pictures in [-1, 1] shifted and scaled by CLIP's published channel statistics."""
    mean, spread = (images.new_tensor(values)[:, None, None] for values in (CHANNEL_MEAN, CHANNEL_SPREAD))
    return ((images + 1) / 2 - mean) / spread


@torch.no_grad()
def text_states(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the text tower's last hidden states, final norm included, as the pipeline has them: (batch, 32, 256)."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        return model(input_ids=ids).last_hidden_state.float()
