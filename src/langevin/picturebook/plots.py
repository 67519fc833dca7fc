"""Draws the picturebook's figures: `python -m langevin.picturebook.plots` makes those of the documentation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.images import from_array, grid
from ..core.imports import require
from .train import HOME
from .world import render, sample_scene

FIGURES = {
    "autoencoder": ("psnr", "reconstruction, dB"),
    "clip": ("matched", "caption found among 192"),
    "unet": ("error", "error of v"),
}
"""Stage -> the figure of its curve to draw, and the label of its axis."""


def curves(folder: Path, path: Path) -> None:
    """Draw the curves of the stages that have been trained in `folder`."""
    matplotlib = require("matplotlib", extra="dev", why="to draw training curves")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = [stage for stage in FIGURES if (folder / f"{stage}.json").exists()]
    figure, axes = pyplot.subplots(1, len(stages), figsize=(4 * len(stages), 3), layout="constrained", squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        points = json.loads((folder / f"{stage}.json").read_text())[1:]
        name, label = FIGURES[stage]
        axis.plot([point["seconds"] / 60 for point in points], [point[name] for point in points])
        axis.set(title=stage, xlabel="minutes on two cores", ylabel=label)
        if stage == "unet":
            axis.set_yscale("log")
    figure.savefig(path, dpi=110)


def world(path: Path, *, rows: int = 4, columns: int = 10, seed: int = 1) -> None:
    """Draw a sheet of scenes of the world."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([render(sample_scene(rng)) for _ in range(rows * columns)]) / 255
    grid(from_array(pictures), rows=rows, cols=columns).save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figures into a folder."""
    parser = argparse.ArgumentParser(prog="python -m langevin.picturebook.plots", description=__doc__)
    parser.add_argument("--folder", type=Path, default=HOME, help="where the training wrote its curves")
    parser.add_argument("--output", type=Path, default=Path("docs/assets"))
    chosen = parser.parse_args(arguments)
    chosen.output.mkdir(parents=True, exist_ok=True)
    world(chosen.output / "picturebook-world.png")
    curves(chosen.folder, chosen.output / "picturebook-curves.png")


if __name__ == "__main__":
    main()
