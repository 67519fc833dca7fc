"""Textual inversion (Gal et al. 2022, 2208.01618): a new word for what a few pictures show, while the model stays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...adapters.textual_inversion import Place
from ...core.errors import ConfigError, check_choice
from ...core.files import atomic_write
from ...core.records import Problems, Records
from ...weights.dialects.textual_inversion import NAMES
from ..data.examples import Captions, PictureExamples
from ..latent import TextToImage
from ..proof import Proof
from ..settings import at_least, told
from ..trainer import Trainer
from ..words import Words, begun
from .common import (
    ModelSettings,
    PictureSettings,
    PreviewSettings,
    completed,
    pipeline,
    prompted,
    rate_of,
    ready,
    run_of,
    words_of,
)
from .feeding import CacheSettings

CAPTIONS = {
    "object": (
        "a photo of {}",
        "a picture of {}",
        "{}",
        "this is {}",
        "here is {}",
        "a close view of {}",
        "{} seen from nearby",
        "{} seen from some way off",
        "a photo of one {}",
        "a good picture of {}",
        "a bad picture of {}",
        "a small picture of {}",
        "a large picture of {}",
        "a bright photo of {}",
        "a dim photo of {}",
        "a drawing of {}",
        "{} in the middle of the picture",
        "part of {}",
        "my {}",
        "someone's {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a painting in the style of {}",
        "a drawing in the style of {}",
        "art in the style of {}",
        "something drawn in the style of {}",
        "a scene in the style of {}",
        "a work in the manner of {}",
        "a picture as {} would make it",
        "a small picture in the style of {}",
        "a large picture in the style of {}",
        "a bright picture in the style of {}",
        "a dim picture in the style of {}",
        "a careful picture in the style of {}",
        "a quick picture in the style of {}",
        "the style of {}",
    ),
}
"""What is learned -> captions of its pictures, in which {} stands for the new word."""


@dataclass
class WordSettings(ModelSettings, PictureSettings, CacheSettings, PreviewSettings):
    """Settings of textual_inversion."""

    output_dir: str = told("text-inversion-model", "folder for checkpoints, the log and the result")
    train_batch_size: int = told(16, "examples per batch of one process")
    num_train_epochs: int = told(100, "how often every example is seen, where max_train_steps says nothing")
    placeholder_token: str | None = told(None, "the new word, such as <cat-toy>")
    initializer_token: str | None = told(None, "known words with whose vectors it begins, such as toy")
    num_vectors: int = told(1, "how many vectors the word has")
    learnable_property: str = told("object", "what is learned: object or style")
    caption_column: str | None = told(None, "column of captions that say the new word; ready-made ones if unset")
    heldout_share: float = field(default=0.0, init=False)
    cache_text_mb: int | None = field(default=None, init=False)
    repeats: int = told(100, "how often an epoch sees every picture")
    save_as_full_pipeline: bool = told(False, "write the whole pipeline with the word beside the word alone")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        for name in ("num_vectors", "repeats"):
            at_least(self, name, 1)
        check_choice("learnable_property", self.learnable_property, CAPTIONS)
        for name in ("placeholder_token", "initializer_token"):
            if not (getattr(self, name) or "").strip():
                raise ConfigError(f"{name} is missing.")
        if len(str(self.placeholder_token).split()) > 1:
            raise ConfigError(f"placeholder_token is {self.placeholder_token!r}; a word has no spaces.")

    def rows(self) -> Records:
        """Return the pictures, and captions if they have their own.

        Raises:
            Problems: with everything that is wrong, captions without the new word among it.
        """
        found = self.records(self.image_column, self.caption_column)
        if self.caption_column is None:
            return found
        silent = [row.name for row in found.rows if not _says(row.columns[self.caption_column], self.placeholder_token)]
        wrong = [f"{name}: the caption does not say {self.placeholder_token}; write it there" for name in silent]
        if wrong:
            raise Problems(found.where, wrong)
        return found

    def examples(self, tokenizer: Any) -> PictureExamples:
        """Return the pictures with captions that say the new word."""
        found = self.rows()
        rows = [row for _ in range(self.repeats) for row in found.rows]
        if self.caption_column is not None:
            captions = Captions(words_of(tokenizer), column=self.caption_column)
        else:
            texts = [text.format(self.placeholder_token) for text in CAPTIONS[self.learnable_property]]
            captions = Captions(words_of(tokenizer), fixed=texts)
        return PictureExamples(replace(found, rows=rows), self.framing(), {"pixels": self.image_column}, captions)


def _says(captions: Any, word: str | None) -> bool:
    """Tell whether a caption, or every one of a list, says a word."""
    texts = captions if isinstance(captions, (list, tuple)) else [captions]
    return all(isinstance(text, str) and str(word) in text for text in texts)


def trainer(settings: WordSettings, pipe: Any, part: Words) -> Trainer:
    """Return the trainer of a word."""
    data = settings.examples(pipe.tokenizer)
    if settings.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.text_encoder.gradient_checkpointing_enable()
    task = TextToImage(
        pipe, settings.denoiser(pipe.scheduler), [part], learning_rate=rate_of(settings)
    )  # fmt: skip
    run = Trainer(task, data, run_of(settings, len(data)))
    settings.keep(run)
    settings.hold(run)
    run.watch += settings.watch(pipe, run.order)
    return run


def train(settings: WordSettings) -> Path:
    """Train the vectors of a new word and return the folder that holds them.

    Raises:
        ConfigError, InputError: for settings and pictures that cannot be used, before a model is loaded; for words that
            the tokenizer does not know, or knows already, before it is trained.
    """
    settings = ready(settings)
    settings.rows()
    pipe = pipeline(settings)
    place, word = Place("text_encoder", pipe.tokenizer, pipe.text_encoder), str(settings.placeholder_token)
    start = begun(place, str(settings.initializer_token), settings.num_vectors)
    part = Words(place, {word: start}, {name: [word] for name in NAMES})
    run = trainer(settings, pipe, part)

    def write(folder: Path) -> None:
        if settings.save_as_full_pipeline:
            pipe.save_pretrained(folder)
        part.save(folder)
        atomic_write(folder / "token_identifier.txt", word)
        atomic_write(folder / "type_of_concept.txt", settings.learnable_property)

    def load(folder: Path) -> Any:
        fresh = pipeline(settings)
        fresh.load_textual_inversion(folder)
        return fresh

    proof = Proof(pipe, prompted(settings, pipe, word), load, file=NAMES[0])
    use = 'pipe.load_textual_inversion("REPO")'
    return completed(settings, run, write, use=use, proof=proof, settle=part.settle)
