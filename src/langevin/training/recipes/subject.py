"""What recipes for a subject share: its pictures, and those of its class, drawn by the model itself or real ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...core.progress import progress_bar
from ...core.records import Problems, Record, Records, pictures_in, read_folder
from ..machine import machine
from ..settings import at_least, told
from ..streams import Streams
from .common import HeldOutSettings

LISTED = ("images.txt", "caption.txt")
"""Paths of pictures and their captions, line by line, as some collections of real pictures have them."""


@dataclass
class SubjectSettings(HeldOutSettings):
    """Settings of recipes that learn a subject and keep its class."""

    instance_data_dir: str | None = told(None, "folder of pictures of the subject")
    instance_prompt: str | None = told(None, "what they show, with a rare word for the subject")
    class_data_dir: str | None = told(None, "folder of pictures of its class; those that are missing are drawn into it")
    class_prompt: str | None = told(None, "what these show")
    with_prior_preservation: bool = told(False, "keep what the model knows of the class")
    prior_loss_weight: float = told(1.0, "share of the class's pictures in the loss")
    num_class_images: int = told(100, "how many pictures of the class there should be")
    sample_batch_size: int = told(4, "pictures of the class that are drawn at a time")
    resolution: int = told(512, "height and width in pixels")
    center_crop: bool = told(False, "crop the middle instead of a random place")
    heldout_share: float = field(default=0.0, init=False)

    def check(self) -> None:
        """Raise InputError or ConfigError for all that can be known before anything is loaded."""
        super().check()
        for name in ("resolution", "num_class_images", "sample_batch_size"):
            at_least(self, name, 1)
        at_least(self, "prior_loss_weight", 0)

    def draw_class(self, pipe: Any, folder: str | Path, prompt: str) -> None:
        """Let a pipeline draw the pictures of a class that a folder lacks."""
        state = machine()
        with state.main_process_first():
            pipe.to(state.device)
            self._draw(pipe, Path(folder), prompt)
            pipe.to("cpu")

    def _draw(self, pipe: Any, folder: Path, prompt: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        there = len(pictures_in(folder))
        streams = Streams(self.decided())
        with progress_bar(total=max(self.num_class_images - there, 0), desc="Class pictures") as bar:
            while there < self.num_class_images:
                count = min(self.sample_batch_size, self.num_class_images - there)
                seeds = [streams.number("class picture", there + k) for k in range(count)]
                for k, picture in enumerate(pipe([prompt] * count, seed=seeds).images):
                    picture.save(folder / f"class-{there + k:05d}.png")
                there += count
                bar.update(count)


def read_class(folder: str | Path, prompt: str | None = None) -> Records:
    """Return real pictures of a class with their captions under "text".

    Captions lie as `read_folder` takes them, or in the files of `LISTED`.

    Args:
        prompt: the caption of pictures without one.

    Raises:
        Problems: when there is no picture, or captions are missing.
        InputError: when there is no such folder.
    """
    found, said = read_folder(folder), _listed(Path(folder).expanduser())
    rows = [Record(row.name, {"text": said.get(Path(row.name).name, prompt), **row.columns}) for row in found.rows]
    return replace(found, rows=rows).checked("image", "text")


def _listed(folder: Path) -> dict[str, str]:
    """Return name of a picture -> its caption in the files of `LISTED`."""
    files = [folder / name for name in LISTED]
    if not all(file.is_file() for file in files):
        return {}
    paths, texts = (file.read_text(encoding="utf-8").splitlines() for file in files)
    if len(paths) != len(texts):
        raise Problems(str(folder), [f"{LISTED[0]} has {len(paths)} lines and {LISTED[1]} {len(texts)}"])
    return {Path(path).name: text.strip() for path, text in zip(paths, texts, strict=True)}
