"""The picturebook: a small procedural world, and the model trained on it that comes with the package."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import InputError

STEPS = 25
"""Steps that are enough for the shipped model and its scheduler; more change little."""

GUIDANCE_SCALE = 2.0
"""Weight of the prompt at which the shipped model draws best; with more, colours run over."""


def model_folder() -> Path:
    """Return the folder of the shipped pipeline, for `DiffusionPipeline.from_pretrained`.

    Raises:
        InputError: when this installation carries none.
    """
    return _shipped("model", "model_index.json", "name another folder or a hub repository")


def control_folder() -> Path:
    """Return the folder of the shipped ControlNet on edges, for `ControlNetModel.from_pretrained`.

    It takes what `canny` makes of a picture, and steers the pipeline of `model_folder`.

    Raises:
        InputError: when this installation carries none.
    """
    return _shipped("control", "config.json", "train it: python -m langevin.picturebook.train --stage control")


def adapters_folder() -> Path:
    """Return the folder of the shipped adapters: `sepia.safetensors` is a style, for `load_lora_weights`, and
    `mika.safetensors` the word `<mika>`, for `load_textual_inversion`.

    Raises:
        InputError: when this installation carries none.
    """
    return _shipped("adapters", "sepia.safetensors", "train them: python -m langevin.picturebook.train --stage style")


def _shipped(name: str, file: str, cure: str) -> Path:
    folder = Path(__file__).parent / name
    if not (folder / file).is_file():
        raise InputError(f"This installation carries no picturebook {name}; {cure}.")
    return folder
