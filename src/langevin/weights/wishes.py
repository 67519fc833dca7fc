"""What a caller says of a single file: where it is, and what wins over what the file tells."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import InputError, check_choice
from ..core.files import missing, resolve_folder, safe_join
from .keras import refuse_program
from .original_config import read_original

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
CONFIG_FILES = ("*.json", "*/*.json", "*/*.txt")
"""What is fetched of a repository that `config` names."""
LINK = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/([^?#]+)")


@dataclass(frozen=True)
class Wishes:
    """What the caller says about a file, which wins over what the file tells.

    Attributes:
        config: a local folder with the configurations of the components, or of the single network.
        original: contents of the authors' configuration.
        prediction_type, image_size: in place of what is concluded from the file.
        extract_ema: take the moving averages of the UNet's weights.
        strict: with False, weights that are missing are initialised afresh and foreign ones left out, with a warning.
    """

    config: Path | None = None
    original: Mapping[str, Any] | None = None
    prediction_type: str | None = None
    image_size: int | None = None
    extract_ema: bool = False
    strict: bool = True

    def __post_init__(self) -> None:
        if self.prediction_type is not None:
            check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)


def locate(link_or_path: str | os.PathLike, **hub: Any) -> Path:
    """Return the local path of a weight file: a local one, or one of the hub by its address, fetched when needed.

    Args:
        link_or_path: a path, or https://huggingface.co/OWNER/NAME/blob/REVISION/FILE (or /resolve/).
        hub: options of `core.hub.fetch_file`.
    Raises:
        InputError: when the file does not exist, or for an address of another kind.
    """
    text = os.fspath(link_or_path)
    match = LINK.match(text)
    if match:
        from ..core.hub import fetch_file

        repo, revision, name = match.groups()
        return fetch_file(repo, name, **{"revision": revision, **hub})
    if re.match(r"\w+://", text):
        raise InputError(
            f"{text!r} is no address of a weight file on the hub, such as "
            f"https://huggingface.co/OWNER/NAME/blob/main/FILE.safetensors; download it and pass its path"
        )
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        refuse_program(path)
        raise InputError(f"{path} is a folder; from_pretrained loads folders, from_single_file a single file")
    raise missing(path)


def wishes_of(
    *,
    config: str | os.PathLike | None,
    original_config: Any,
    hub: Mapping[str, Any],
    subfolder: str | None = None,
    **wishes: Any,
) -> Wishes:
    """Return what a caller says about a file, with the folder of `config` at hand and `original_config` read."""
    folder = None if config is None else resolve_folder(config, allow_patterns=CONFIG_FILES, **hub)
    if folder is not None and subfolder:
        folder = safe_join(folder, subfolder)
    original = None if original_config is None else read_original(original_config)
    return Wishes(folder, original, **wishes)
