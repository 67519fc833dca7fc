"""The picturebook: a small procedural world, and the model trained on it that comes with the package."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import InputError


def model_folder() -> Path:
    """Return the folder of the shipped pipeline, for `DiffusionPipeline.from_pretrained`.

    Raises:
        InputError: when this installation carries none.
    """
    folder = Path(__file__).parent / "model"
    if not (folder / "model_index.json").is_file():
        raise InputError("This installation carries no picturebook model; name another folder or a hub repository.")
    return folder
