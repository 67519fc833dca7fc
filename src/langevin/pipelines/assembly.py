"""From a single file in its authors' layout to a pipeline: whether the class fits, which parts, and from where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..core.config import keywords, options_of
from ..core.errors import ConfigError, check_choice, check_known
from ..core.logging import get_logger
from ..registry import PIPELINES, Row
from ..weights.bundled import clip_tokenizer
from ..weights.family import Facts
from ..weights.single_file import SingleFile
from ..weights.wishes import locate, wishes_of
from . import files, loading

logger = get_logger(__name__)
FAMILIES = {
    "stable_diffusion": "stable_diffusion",
    "stable_diffusion_2": "stable_diffusion",
    "stable_diffusion_xl": "stable_diffusion_xl",
    "stable_diffusion_xl_refiner": "stable_diffusion_xl",
}
"""Family of a file -> family of pipelines."""
FREE = ("text-to-image", "image-to-image", "inpainting")
TASKS: dict[str, tuple[str, ...]] = {
    "text-to-image": FREE,
    "turbo": FREE,
    "inpainting": ("inpainting",),
    "refiner": ("image-to-image", "inpainting"),
    "instruction": ("instruction",),
    "depth": ("depth-to-image",),
    "upscaling": ("upscaling",),
    "unclip": (),
}
"""Kind of a file -> the tasks that its UNet can do, alone or with a control."""
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Documented values of `scheduler_type`."""


def load_single_file(
    cls: type[Any],
    link_or_path: str | os.PathLike,
    given: Mapping[str, Any],
    *,
    choices: files.Choices,
    hub: Mapping[str, Any],
    overrides: Mapping[str, Any],
    scheduler_type: str | None,
    use_map: bool,
    **wishes: Any,
) -> Any:
    """Return a pipeline of a class from a single file; see `FromSingleFileMixin.from_single_file`."""
    if scheduler_type is not None:
        check_choice("scheduler_type", scheduler_type, SCHEDULERS)
    with SingleFile(locate(link_or_path, **hub), wishes_of(hub=hub, **wishes), use_map=use_map) as file:
        file.voice_doubts()
        pipe = Assembly(cls, file, choices).build(given, overrides=overrides, scheduler_type=scheduler_type)
    pipe._name_or_path = os.fspath(link_or_path)
    return pipe


class Assembly:
    """Builds a pipeline of a class from an opened file.

    Raises:
        ConfigError: when the file is for another pipeline, which is named.
    """

    def __init__(self, cls: type[Any], file: SingleFile, choices: files.Choices) -> None:
        self.cls, self.file, self.choices = cls, file, choices
        self.accepted = options_of(cls)
        check_class(cls, file.facts, file.what)

    def build(self, given: Mapping[str, Any], *, overrides: Mapping[str, Any], scheduler_type: str | None) -> Any:
        """Return the pipeline.

        Args:
            given: components and options in place of the file's.
            overrides: options of the UNet to change.
            scheduler_type: key of `SCHEDULERS`.
        """
        file = self.file
        known = [*self.accepted, *keywords(self.cls.from_single_file)]
        check_known(f"{self.cls.__name__}.from_single_file", given, known)
        options = {**file.options("options"), **self._stated_options()}
        parts = {name: value for name, value in {**options, **given}.items() if name in self.accepted}
        used = []
        for name in self.accepted:
            if name in parts:
                continue
            if name in file.places:
                changes = overrides if name == "unet" else {}
                parts[name] = file.build(name, dtype=self._dtype(name), overrides=changes)
                used.append(name)
            else:
                made = self._without_weights(name, scheduler_type)
                parts |= {} if made is None else {name: made}
        self._finish(parts, given)
        file.check_rest(used)
        self._check_words(parts)
        return self.cls(**parts)

    def _dtype(self, name: str) -> Any:
        chosen = self.choices.dtype(name)
        return None if chosen == "auto" else chosen

    def _stated_options(self) -> dict[str, Any]:
        """Return the constructor's options that the caller's folder states."""
        index = self.file.given_config("", self.cls.config_name) or {}
        return {k: v for k, v in index.items() if k in self.accepted and not isinstance(v, (list, tuple))}

    def _without_weights(self, name: str, scheduler_type: str | None) -> Any:
        """Return a part that has no weights: a scheduler or a tokenizer; None when the part is another or unknown."""
        if name == "scheduler" or name.endswith("_scheduler"):
            return self._scheduler(name, scheduler_type if name == "scheduler" else None)
        return self._tokenizer(name) if name.startswith("tokenizer") else None

    def _scheduler(self, name: str, kind: str | None) -> Any:
        config = self.file.scheduler_config(name)
        if config is None:
            return None
        written = str(config.get("_class_name", "PNDMScheduler"))
        made = loading.our_class(written, f"The component {name!r}").from_config(config)
        return made if kind is None else loading.our_class(SCHEDULERS[kind], name).from_config(made.config)

    def _tokenizer(self, name: str) -> Any:
        """Return a tokenizer from the caller's folder, or the one that comes with the library."""
        folder = self.file.wishes.config
        if folder is not None and (folder / name).is_dir():
            return loading.component_class("transformers", "CLIPTokenizer", name).from_pretrained(Path(folder) / name)
        encoder = name.replace("tokenizer", "text_encoder")
        return clip_tokenizer(**self.file.options(name)) if encoder in self.file.places else None

    def _finish(self, parts: dict[str, Any], given: Mapping[str, Any]) -> None:
        """Make absent optional parts None, and refuse a pipeline that lacks others."""
        file, cls = self.file, self.cls
        checker = "safety_checker" in self.accepted and parts.get("safety_checker") is None
        if checker and "requires_safety_checker" in self.accepted:
            parts.setdefault("requires_safety_checker", False)
        if checker and "safety_checker" not in given:
            logger.warning("%s holds no safety checker: pictures are returned unchecked.", file.what)
        parts |= dict.fromkeys(loading.absent(cls, parts))
        missing = loading.lacking(cls, parts)
        if missing:
            held = ", ".join(file.places) or "no network that is known here"
            raise ConfigError(
                f"{file.what} holds {held}; {cls.__name__} also needs {', '.join(missing)}: pass `{missing[0]}=...`"
            )

    def _check_words(self, parts: Mapping[str, Any]) -> None:
        """Refuse a tokenizer with more words than its text encoder knows, which would fail at the first prompt."""
        for name, tokenizer in parts.items():
            encoder = parts.get(name.replace("tokenizer", "text_encoder")) if name.startswith("tokenizer") else None
            known = getattr(getattr(encoder, "config", None), "vocab_size", None)
            if isinstance(encoder, nn.Module) and known is not None and len(tokenizer) > known:
                raise ConfigError(
                    f"the text encoder of {self.file.what} knows {known} words and the tokenizer has {len(tokenizer)}; "
                    f"pass `{name}=...`, or `config`, a folder with the right one"
                )


def row_of(cls: type[Any]) -> Row | None:
    """Return the registry row of a pipeline class or of the nearest class it derives from."""
    rows = {row.name: row for row in PIPELINES}
    return next((rows[base.__name__] for base in cls.__mro__ if base.__name__ in rows), None)


def check_class(cls: type[Any], facts: Facts, what: str) -> None:
    """Raise ConfigError when a file is for another pipeline than `cls`, naming the right one."""
    row = row_of(cls)
    if row is None or row.family is None:
        return
    family, tasks = FAMILIES.get(facts.family), TASKS.get(facts.kind)
    fits = family == row.family and (tasks is None or any((row.task or "").endswith(task) for task in tasks))
    if fits and (facts.kind != "upscaling" or facts.pipeline == row.name):
        return
    cure = f"; call {facts.pipeline}.from_single_file" if facts.pipeline else ""
    raise ConfigError(f"{what} is not for {cls.__name__}{cure}. It is {facts.explain()}")
