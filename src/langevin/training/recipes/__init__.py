"""Recipes by name: what `langevin train NAME` and the scripts in examples/ run."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import InputError, LangevinError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        module: in this package.
        settings: name of the class of its settings there.
        train: name of the function there that takes them and returns the folder of the result.
        about: what it does.
    """

    module: str
    settings: str
    train: str
    about: str

    def loaded(self) -> tuple[type, Any]:
        """Return the class of the settings and the function."""
        module = importlib.import_module(f"{__name__}.{self.module}")
        return getattr(module, self.settings), getattr(module, self.train)


RECIPES = {
    "controlnet": Recipe("controlnet", "ControlSettings", "train", "a network that makes a model follow pictures"),
    "custom_diffusion": Recipe("custom_diffusion", "CustomSettings", "train", "new words for several subjects"),
    "dreambooth": Recipe("dreambooth", "FullSettings", "train_full", "a subject from a few pictures"),
    "dreambooth_lora": Recipe("dreambooth", "LoraSettings", "train_lora", "a subject as a LoRA"),
    "dreambooth_lora_sdxl": Recipe("sdxl", "DreamBoothSettings", "train_dreambooth", "a subject as a LoRA, for SDXL"),
    "instruct_pix2pix": Recipe("instruct_pix2pix", "EditSettings", "train", "a model that edits as instructed"),
    "textual_inversion": Recipe("textual_inversion", "WordSettings", "train", "a new word from a few pictures"),
    "text_to_image": Recipe("text_to_image", "FullSettings", "train_full", "pictures with captions"),
    "text_to_image_lora": Recipe("text_to_image", "LoraSettings", "train_lora", "pictures with captions, as a LoRA"),
    "text_to_image_lora_sdxl": Recipe(
        "sdxl", "LoraSettings", "train_lora", "pictures with captions, as a LoRA for SDXL"
    ),
    "text_to_image_sdxl": Recipe("sdxl", "FullSettings", "train_full", "pictures with captions, for SDXL"),
    "unconditional": Recipe("unconditional", "UnconditionalSettings", "train", "a network on pictures alone"),
}
"""Name -> recipe. The scripts of examples/ are called train_NAME.py."""
REPORT = "report"
"""In place of a recipe: write the report of a run anew."""


def run(name: str, words: Sequence[str], *, command: str | None = None) -> Path:
    """Train a recipe with the flags of a command line and return the folder of the result.

    Args:
        name: of the recipe, or `REPORT`, whose only word is the folder of a run: its report is written anew.
        command: what the help calls the command.

    Raises:
        InputError: for an unknown name.
        LangevinError: for flags, data or models that cannot be used.
    """
    from ..report import write
    from ..settings import parse

    if name == REPORT:
        if len(words) != 1 or words[0].startswith("-"):
            raise InputError(f"{command or REPORT} takes one word, the folder of a run; got {list(words)}.")
        return write(words[0])
    if name not in RECIPES:
        raise InputError(
            f"There is no recipe {name!r}{did_you_mean(name, [*RECIPES, REPORT])} All: {', '.join(RECIPES)}."
        )
    recipe = RECIPES[name]
    settings, train = recipe.loaded()
    return train(parse(settings, words, name=command or f"train_{name}.py", about=f"Trains {recipe.about}."))


def main(name: str) -> None:
    """Run a recipe as a script."""
    script(partial(run, name, command=Path(sys.argv[0]).name))


def script(work: Callable[[Sequence[str]], Path]) -> None:
    """Run a function of flags as a script: what is wrong is said in one line, and the exit status is 2."""
    try:
        tell(work(sys.argv[1:]))
    except LangevinError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def tell(folder: Path) -> None:
    """Say where the result of a training is; of several processes the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"Written to {folder}")
