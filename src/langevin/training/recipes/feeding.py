"""What recipes share of how pictures are fed: the sizes that they are trained at, and latents that are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ..caching import fill
from ..data.buckets import plan
from ..data.memory import Memory
from ..settings import Settings, at_least, told
from ..trainer import Run, Trainer
from .common import processes

TEXT_MB = 512
"""Megabytes for the states of texts where latents are kept too."""


@dataclass
class BucketSettings(Settings):
    """Settings of recipes that may train at several sizes."""

    if TYPE_CHECKING:
        resolution: int = 512

    aspect_ratio_buckets: bool = told(False, "train at several sizes of one area, every picture at the nearest shape")

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        if self.aspect_ratio_buckets:
            plan(self.resolution)

    def bucketed(self, run: Run, data: Any) -> Run:
        """Return a run whose steps see pictures of one size, if asked; its examples are told their sizes."""
        if not self.aspect_ratio_buckets:
            return run
        return replace(run, buckets=data.bucket(run.batch * run.accumulated * processes()))


@dataclass
class CacheSettings(Settings):
    """Settings of recipes that may keep what frozen networks say of examples."""

    if TYPE_CHECKING:
        center_crop: bool = False

    cache_latents: bool = told(False, "encode every picture once, before training; needs center_crop")
    latents_dir: str | None = told(
        None, "folder of these latents, which runs may share; latents in output_dir if unset"
    )
    cache_text_mb: int | None = told(
        None, f"megabytes of memory for what a frozen text encoder said; {TEXT_MB} with cache_latents, none without"
    )

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        at_least(self, "cache_text_mb", 0)
        if self.latents_dir and not self.cache_latents:
            raise ConfigError("latents_dir has no effect without cache_latents.")
        if self.cache_latents and not self.center_crop:
            raise ConfigError(
                "cache_latents needs center_crop: a crop at a random place is another picture every time, so nothing "
                "could be kept. random_flip may stay."
            )
        if self.cache_text_mb and getattr(self, "train_text_encoder", False):
            raise ConfigError("cache_text_mb has no effect with train_text_encoder: what it says changes.")

    def keep(self, run: Trainer) -> None:
        """Let a run keep what was asked for."""
        task: Any = run.task
        megabytes = (TEXT_MB if self.cache_latents else 0) if self.cache_text_mb is None else self.cache_text_mb
        if megabytes:
            task.memory = Memory(megabytes * 2**20)
        if self.cache_latents:
            folder = Path(self.latents_dir) if self.latents_dir else Path(self.output_dir) / "latents"
            run.before.insert(0, partial(fill, folder=folder.expanduser()))
