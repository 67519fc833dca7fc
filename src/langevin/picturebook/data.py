"""The picturebook's training set: rendered scenes, their captions and facts, drawn once and memory-mapped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.files import atomic_file, atomic_write
from ..core.progress import progress_bar
from .captions import describe
from .world import BACKGROUNDS, COLOURS, KINDS, RELATIONS, SIZES, STYLES, Scene, render, sample_scene

CAPTIONS = 2
"""Captions kept for every scene, in different wordings."""

_CHUNK = 500
_THING: tuple[tuple[str, int], ...] = (
    ("kind", len(KINDS)),
    ("colour", len(COLOURS)),
    ("size", len(SIZES)),
    ("count", 2),
)
FIELDS: tuple[tuple[str, int], ...] = (
    *((f"first {name}", options) for name, options in _THING),
    *((f"second {name}", options + 1) for name, options in _THING),
    ("relation", len(RELATIONS) + 1),
    ("background", len(BACKGROUNDS)),
    ("style", len(STYLES)),
)
"""The facts of a scene, and how many answers each has; a second thing and a relation may also be "none", the last."""


@dataclass(frozen=True)
class Scenes:
    """The training set.

    Attributes:
        pictures: uint8 of shape (n, 64, 64, 3), memory-mapped.
        facts: int64 of shape (n, fields), an answer for each of `FIELDS`.
        captions: n tuples of `CAPTIONS` wordings.
    """

    pictures: np.ndarray
    facts: Tensor
    captions: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, rows: Tensor) -> Tensor:
        """Return pictures as float32 in [-1, 1] of shape (rows, 3, 64, 64), laid out channels last."""
        return signed(self.pictures[rows.numpy()])


def signed(pictures: np.ndarray) -> Tensor:
    """Return pictures, uint8 (n, height, width, 3), as float32 in [-1, 1], (n, 3, height, width), channels last."""
    return (torch.from_numpy(pictures).float() / 127.5 - 1).permute(0, 3, 1, 2)


def cached(
    path: Path, shape: tuple[int, ...], rows: int, compute: Callable[[Tensor], Tensor], *, dtype: Any = np.float16
) -> Tensor:
    """Return the array in `path`, computed block by block (rows of the first axis) if none of its shape is there."""
    if not path.exists() or np.load(path, mmap_mode="r").shape != shape:
        with atomic_file(path) as partial:
            array = np.lib.format.open_memmap(partial, "w+", dtype, shape)
            for start in progress_bar(range(0, shape[0], rows), desc=path.stem):
                block = compute(torch.arange(start, min(start + rows, shape[0])))
                array[start : start + len(block)] = block.numpy()
            array.flush()
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def facts_of(scene: Scene) -> list[int]:
    """Return the number of the right answer to each of `FIELDS`."""
    facts = []
    for place in range(2):
        if place < len(scene.things):
            thing = scene.things[place]
            facts += [KINDS.index(thing.kind), COLOURS.index(thing.colour), SIZES.index(thing.size), thing.count - 1]
        else:
            facts += [options for _, options in _THING]
    relation = RELATIONS.index(scene.relation) if scene.relation else len(RELATIONS)
    return [*facts, relation, BACKGROUNDS.index(scene.background), STYLES.index(scene.style)]


def _draw(seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[tuple[str, ...]]]:
    """Draw one chunk of the training set; it depends on the seed alone."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(_CHUNK)]
    captions = [tuple(describe(scene, rng) for _ in range(CAPTIONS)) for scene in scenes]
    return np.stack([render(scene) for scene in scenes]), np.array([facts_of(s) for s in scenes]), captions


def draw(folder: Path, count: int, *, seed: int = 0, workers: int = 2) -> None:
    """Draw `count` scenes (rounded up to whole chunks) into `folder`, with `workers` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // _CHUNK)
    unfinished = folder / "pictures.tmp.npy"
    pictures = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (chunks * _CHUNK, 64, 64, 3))
    facts, captions = [], []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        drawn = pool.map(_draw, [(seed, chunk) for chunk in range(chunks)])
        for chunk, (block, answers, wordings) in enumerate(progress_bar(drawn, total=chunks, desc="drawing scenes")):
            pictures[chunk * _CHUNK : (chunk + 1) * _CHUNK] = block
            facts.append(answers)
            captions += wordings
    pictures.flush()
    np.save(folder / "facts.npy", np.concatenate(facts))
    atomic_write(folder / "captions.txt", "\n".join("\t".join(wordings) for wordings in captions))
    unfinished.replace(folder / "pictures.npy")


def load(folder: Path, count: int, *, seed: int = 0) -> Scenes:
    """Return the training set in `folder`, drawing it first if it is not there or has fewer than `count` scenes."""
    path = folder / "pictures.npy"
    if not path.exists() or len(np.load(path, mmap_mode="r")) < count:
        draw(folder, count, seed=seed)
    captions = (folder / "captions.txt").read_text().split("\n")
    facts = torch.from_numpy(np.load(folder / "facts.npy"))
    return Scenes(np.load(path, mmap_mode="r"), facts, [tuple(line.split("\t")) for line in captions])
