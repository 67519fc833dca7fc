"""`langevin evaluate`: the pictures of a folder by their prompts, against other pictures, or as edits of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..core.errors import InputError
from ..evaluation.features import Clip, ClipScore, Extractor, Judge
from ..evaluation.folders import Shown, answering, read
from ..evaluation.inception import FILE, Inception
from ..evaluation.pictures import Look, Result, evaluate, evaluate_edits
from ..evaluation.prompt_files import draw, read_prompts
from ..picturebook.features import AsAsked, CheckerFeatures
from ..picturebook.features import clip as picturebook_clip
from .model import pick_device
from .request import PICTUREBOOK

CHECKER, INCEPTION = "checker", "inception"


@dataclass(frozen=True)
class Eyes:
    """What the options say about how pictures are looked at.

    Attributes:
        clip: the CLIP of figures by prompt: "picturebook", a folder, or a hub repository.
        features: the extractor of distances: the same names, "checker", or a file of Inception's weights; None takes
            `clip`.
    """

    clip: str = PICTUREBOOK
    features: str | None = None
    device: str = "auto"
    batch: int = 32
    resamples: int = 1000
    seed: int = 0

    @cached_property
    def loaded(self) -> Clip:
        """The CLIP."""
        return load_clip(self.clip, self.device)

    def judges(self) -> list[Judge]:
        """Return the judges of pictures by prompts: CLIP, and the checker for the picturebook's."""
        return [ClipScore(self.loaded), *([AsAsked()] if self.clip == PICTUREBOOK else [])]

    def extractor(self) -> Extractor:
        """Return the extractor of distances."""
        if self.features == CHECKER:
            return CheckerFeatures()
        if self.features == INCEPTION and not Path(INCEPTION).exists():
            raise InputError(f"Inception needs its weights: name the file, such as --features {FILE}, in its place.")
        if self.features is not None and Path(self.features).is_file():
            return Inception(self.features, device=pick_device(self.device))
        return self.loaded if self.features in (None, self.clip) else load_clip(str(self.features), self.device)

    def look(self, *, judged: bool, against: bool) -> Look:
        """Return how to look, with what is needed loaded."""
        extractor = self.extractor() if against else None
        judges = self.judges() if judged else []
        return Look(extractor, judges, batch=self.batch, resamples=self.resamples, seed=self.seed)


def load_clip(name: str, device: str) -> Clip:
    """Return the CLIP that a name means on a device."""
    device = pick_device(device)
    return picturebook_clip(device=device) if name == PICTUREBOOK else Clip.from_pretrained(name, device=device)


def asked(folder: str, prompts: str | None, category: str | None) -> list[Shown]:
    """Return the pictures of a folder; with a file of prompts, those that answer them.

    Raises:
        InputError: when they do not go together, or a category is asked without a file.
    """
    if prompts is None:
        if category is not None:
            raise InputError("--category chooses among the prompts of a file; give --prompts too.")
        return read(folder)
    listed = read_prompts(prompts)
    pictures = answering(read(folder), [prompt.text for prompt in listed], folder=folder)
    if category is None:
        return pictures
    chosen = {prompt.text for prompt in draw(listed, category=category)}
    return [shown for shown in pictures if shown.prompt in chosen]


def run(
    folder: str,
    *,
    against: str | None,
    prompts: str | None,
    category: str | None,
    edited_from: str | None,
    eyes: Eyes,
) -> Result:
    """Return the figures.

    Raises:
        InputError: for options that do not go together, or pictures that cannot be measured.
    """
    if edited_from is not None:
        if against or prompts:
            raise InputError("--edited-from measures each edit by its own captions; leave out --against and --prompts.")
        return evaluate_edits(read(edited_from), read(folder), eyes.look(judged=False, against=False), eyes.loaded)
    pictures = asked(folder, prompts, category)
    others = None if against is None else read(against)
    judged = any(shown.prompt for shown in pictures)
    if not judged and others is None:
        raise InputError(
            f"{folder} has pictures without prompts, so there is nothing to measure; give --prompts, a text file "
            "beside each picture, or pictures to hold them against (--against)."
        )
    result = evaluate(pictures, eyes.look(judged=judged, against=others is not None), against=others)
    return with_notes(result, pictures, eyes)


def with_notes(result: Result, pictures: Sequence[Shown], eyes: Eyes) -> Result:
    """Return the result with a note on prompts that CLIP cut."""
    cut = eyes.loaded.cut({shown.prompt for shown in pictures if shown.prompt}) if "judged by" in result.about else []
    if not cut:
        return result
    note = f"CLIP reads {eyes.loaded.length} tokens; {len(cut)} prompts are longer and were cut, such as {cut[0]!r}."
    return replace(result, notes=(*result.notes, note))
