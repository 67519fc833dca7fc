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
    folder = Path(__file__).parent / "model"
    if not (folder / "model_index.json").is_file():
        raise InputError("This installation carries no picturebook model; name another folder or a hub repository.")
    return folder
