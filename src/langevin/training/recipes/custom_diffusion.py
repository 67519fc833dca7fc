"""Custom Diffusion (Kumari et al. 2023, 2212.04488): new words for several subjects, learned together.

Trained are the keys and values of the UNet's cross-attentions and the vectors of the new words. Pictures of each
subject's class, real ones or drawn by the model before, keep what it knew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...adapters.textual_inversion import Place
from ...core.errors import ConfigError, InputError, check_choice, did_you_mean
from ...core.logging import get_logger
from ...core.records import Problems, Records, read_folder
from ..data.examples import Captions, PictureExamples
from ..data.framing import Framing
from ..data.joined import Joined
from ..data.paired import Paired
from ..data.zoomed import Zoomed
from ..latent import TextToImage
from ..projections import FILE, KINDS, Projections
from ..proof import Proof
from ..settings import told
from ..trainables import Trainable
from ..trainer import Trainer
from ..words import Words, begun
from .common import ModelSettings, PreviewSettings, completed, pipeline, prompted, rate_of, ready, run_of, words_of
from .subject import SubjectSettings, read_class

logger = get_logger(__name__)
RARE = ("ktn", "pll", "ucd")
"""Tokens that mean little, with which new words begin, in this order."""


@dataclass(frozen=True)
class Concept:
    """A subject.

    Attributes:
        instance_data_dir: folder of its pictures.
        instance_prompt: what they show, with the subject's new word.
        class_data_dir: folder of pictures of its class.
        class_prompt: what these show.
    """

    instance_data_dir: str | None = None
    instance_prompt: str | None = None
    class_data_dir: str | None = None
    class_prompt: str | None = None


NAMES = tuple(part.name for part in fields(Concept))


@dataclass
class CustomSettings(ModelSettings, PreviewSettings, SubjectSettings):
    """Settings of train_custom_diffusion."""

    output_dir: str = told("custom-diffusion-model", "folder for checkpoints, the log and the result")
    learning_rate: float = told(1e-5, "of the optimizer, after the warm-up")
    num_validation_images: int = told(2, "pictures per prompt")
    validation_steps: int = told(50, "optimizer steps between two looks")
    concepts_list: str | None = told(None, f"JSON file, a list of objects with {', '.join(NAMES)}, in their place")
    modifier_token: str | None = told(None, "the new words, joined by +, such as <new1>+<new2>")
    initializer_token: str | None = told(None, f"known words they begin as, joined by +; {'+'.join(RARE)} if unset")
    freeze_model: str = told(
        "crossattn_kv", "train keys and values (crossattn_kv), queries and outputs too (crossattn)"
    )
    real_prior: bool = told(False, "the pictures of a class are real ones with captions of their own, see retrieve.py")
    hflip: bool = told(False, "mirror half of the pictures")
    noaug: bool = told(False, "show pictures in their size alone, not smaller and larger ones too")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        check_choice("freeze_model", self.freeze_model, KINDS)
        if self.real_prior and not self.with_prior_preservation:
            raise ConfigError("real_prior has no effect without with_prior_preservation.")
        concepts = self.concepts()
        for concept in concepts:
            read_folder(str(concept.instance_data_dir)).checked("image")
            if self.real_prior:
                read_class(str(concept.class_data_dir), concept.class_prompt)
        self.unseen()
        said = " ".join(str(concept.instance_prompt) for concept in concepts)
        silent = [word for word in self.beginnings() if word not in said]
        if silent:
            raise ConfigError(f"No instance_prompt says {silent[0]!r}, so nothing would be learned for it.")

    def beginnings(self) -> dict[str, str]:
        """Return new word -> the known words that it begins as.

        Raises:
            ConfigError: for words that are none, come twice, or are more or fewer than what they begin as.
        """
        if self.modifier_token is None:
            if self.initializer_token is not None:
                raise ConfigError("initializer_token has no effect without modifier_token.")
            return {}
        words = [word.strip() for word in self.modifier_token.split("+")]
        wrong = next((word for word in words if len(word.split()) != 1 or "/" in word or words.count(word) > 1), None)
        if wrong is not None:
            what = f"{wrong!r} is empty, has a space or a slash, or comes twice"
            raise ConfigError(f"modifier_token is {self.modifier_token!r}; {what}.")
        first = RARE[: len(words)] if self.initializer_token is None else self.initializer_token.split("+")
        if len(first) != len(words):
            counts = f"{len(words)} new words begin as {len(first)} known ones"
            raise ConfigError(f"{counts}; name as many, joined by +, as initializer_token.")
        return dict(zip(words, first, strict=True))

    def concepts(self) -> list[Concept]:
        """Return the subjects: those of `concepts_list`, or the one that the flags name.

        Raises:
            ConfigError, Problems: for what is missing, and what has no effect.
        """
        own = {name: getattr(self, name) for name in NAMES}
        if self.concepts_list is None:
            wrong = self._wrong(own)
            if wrong:
                raise ConfigError(f"{wrong[0]}.")
            return [Concept(**own)]
        given = next((name for name, value in own.items() if value), None)
        if given is not None:
            raise ConfigError(f"{given} has no effect with concepts_list, which names it for every subject.")
        found = json_list(Path(self.concepts_list))
        if wrong := [f"subject {k}: {line}" for k, one in enumerate(found, 1) for line in self._wrong(one)]:
            raise Problems(self.concepts_list, wrong)
        return [Concept(**one) for one in found]

    def _wrong(self, concept: Any) -> list[str]:
        """Return what is wrong with the description of a subject."""
        if not isinstance(concept, Mapping):
            return [f"it is a {type(concept).__name__}; an object was expected"]
        wrong = [f"there is no {name!r}{did_you_mean(name, NAMES)}" for name in concept if name not in NAMES]
        wrong += [f"{name} is missing" for name in NAMES[:2] if not concept.get(name)]
        for name in NAMES[2:]:
            needed = self.with_prior_preservation and not (name == "class_prompt" and self.real_prior)
            if needed and not concept.get(name):
                wrong.append(f"{name} is missing: with_prior_preservation needs it")
            if concept.get(name) and not self.with_prior_preservation:
                wrong.append(f"{name} has no effect without with_prior_preservation")
        return wrong

    def unseen(self) -> Records | None:
        """Return the pictures of subjects with those held out, if any are; with `concepts_list` these have captions.

        Raises:
            Problems: with everything that is wrong with them.
            ConfigError: when some of them are trained on.
        """
        if self.heldout_data_dir is None:
            return None
        found = [read_folder(str(concept.instance_data_dir)) for concept in self.concepts()]
        seen = replace(found[0], rows=[row for part in found for row in part.rows])
        return self.held(seen, "image", "text" if self.concepts_list else None)

    def examples(self, concept: Concept, tokenizer: Any) -> Any:
        """Return the examples of a subject, with those of its class if asked."""
        subject = self.pictures(read_folder(str(concept.instance_data_dir)), concept.instance_prompt, tokenizer)
        data = subject if self.noaug else Zoomed(subject)
        if not self.with_prior_preservation:
            return data
        if self.real_prior:
            found = read_class(str(concept.class_data_dir), concept.class_prompt)
            if len(found) < self.num_class_images:
                logger.warning("%s holds %d of %d pictures", found.where, len(found), self.num_class_images)
            rows, prompt = found.rows[: self.num_class_images], None
        else:
            found = read_folder(str(concept.class_data_dir)).checked("image")
            rows, prompt = found.rows, concept.class_prompt
        prior = self.pictures(Records(found.where, rows), prompt, tokenizer)
        return Paired(data, prior if self.noaug else Zoomed(prior, (1.0, 1.0)), self.prior_loss_weight)

    def pictures(self, records: Records, prompt: str | None, tokenizer: Any) -> PictureExamples:
        """Return examples that all have a prompt as their caption, or captions of their own."""
        framing = Framing(self.resolution, self.resolution, self.center_crop, self.hflip)
        return PictureExamples(records, framing, captions=Captions(words_of(tokenizer), fixed=prompt))


def json_list(file: Path) -> list[Any]:
    """Return the list in a JSON file.

    Raises:
        InputError: when there is no such file.
        ConfigError: when it holds no list, or an empty one.
    """
    if not file.is_file():
        raise InputError(f"The file {file} does not exist.")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{file} must hold a list of objects, one for each subject.")
    return found


def trainer(settings: CustomSettings, pipe: Any, parts: list[Trainable]) -> Trainer:
    """Return the trainer of parts of a pipeline."""
    data = Joined([settings.examples(concept, pipe.tokenizer) for concept in settings.concepts()])
    if settings.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        if len(parts) > 1:
            pipe.text_encoder.gradient_checkpointing_enable()
    task = TextToImage(pipe, settings.denoiser(pipe.scheduler), parts, learning_rate=rate_of(settings))
    run = Trainer(task, data, run_of(settings, len(data)))
    if (held := settings.unseen()) is not None:
        prompt = None if settings.concepts_list else settings.instance_prompt
        settings.hold(run, settings.pictures(held, prompt, pipe.tokenizer))
    run.watch += settings.watch(pipe, run.order)
    return run


def train(settings: CustomSettings) -> Path:
    """Train projections and words, and return the folder that holds them.

    Raises:
        ConfigError, InputError: for settings and pictures that cannot be used, before a model is loaded; for words that
            the tokenizer does not know, or knows already, before they are trained.
    """
    settings = ready(settings)
    pipe = pipeline(settings)
    place = Place("text_encoder", pipe.tokenizer, pipe.text_encoder)
    start = {word: begun(place, known) for word, known in settings.beginnings().items()}
    if settings.with_prior_preservation and not settings.real_prior:
        for concept in settings.concepts():
            settings.draw_class(pipe, str(concept.class_data_dir), str(concept.class_prompt))
    parts: list[Trainable] = [Projections(pipe.unet, settings.freeze_model)]
    if start:
        parts.append(Words(place, start, {f"{word}.bin": [word] for word in start}))
    run = trainer(settings, pipe, parts)

    def write(folder: Path) -> None:
        for part in parts:
            part.save(folder)

    files = {"unet.load_attn_procs": [FILE], "load_textual_inversion": [f"{word}.bin" for word in start]}
    use = [f'pipe.{method}("REPO", weight_name="{name}")' for method, names in files.items() for name in names]

    def load(folder: Path) -> Any:
        fresh = pipeline(settings)
        fresh.unet.load_attn_procs(folder, weight_name=FILE)
        for word in start:
            fresh.load_textual_inversion(folder, weight_name=f"{word}.bin")
        return fresh

    prompt = " and ".join(str(concept.instance_prompt) for concept in settings.concepts())
    proof = Proof(pipe, prompted(settings, pipe, prompt), load, file=FILE)
    return completed(settings, run, write, use="\n".join(use), proof=proof)
