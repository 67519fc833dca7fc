"""Measure what a recipe achieves: `python -m langevin.picturebook.effects NAME --output FOLDER`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

EFFECTS = (
    "controlnet",
    "custom_diffusion",
    "dreambooth",
    "instruct_pix2pix",
    "style",
    "text_to_image",
    "textual_inversion",
    "unconditional",
)
"""Modules of this package, each with `measure(folder, steps) -> Effect`; `steps` None takes those of the docs."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m langevin.picturebook.effects", description=__doc__)
    parser.add_argument("name", choices=EFFECTS)
    parser.add_argument("--output", type=Path, default=Path("effects"), help="folder, one folder per effect inside it")
    about = "optimizer steps, those of the published figures if unset; a handful also learns and judges fewer pictures"
    parser.add_argument("--steps", type=int, help=about)
    given = parser.parse_args()
    folder = given.output / given.name
    effect = importlib.import_module(f"{__package__}.{given.name}").measure(folder, given.steps)
    effect.write(folder)
    for found in effect.shares:
        goal = "" if found.goal is None else f", goal {found.goal:g} %"
        print(f"{found.name}: {found.percent:.0f} % of {found.count} ({found.low:.0f} to {found.high:.0f}){goal}")
    for name, value in effect.figures.items():
        print(f"{name}: {value}")
    print(f"Written to {folder}")


if __name__ == "__main__":
    main()
