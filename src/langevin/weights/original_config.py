"""The YAML files in which the authors of latent diffusion describe a model: what they say that shapes do not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, InputError
from ..core.imports import require
from .family import Config

Parsed = Mapping[str, Any]


def read_original(original: Mapping[str, Any] | str | os.PathLike | BytesIO) -> Config:
    """Return the contents of an original configuration: a mapping, an opened file, or the path of a YAML file.

    Raises:
        InputError: when the file does not exist.
        ConfigError: when it is no such configuration.
    """
    if isinstance(original, Mapping):
        contents: Any = dict(original)
    else:
        if not isinstance(original, BytesIO) and not Path(original).expanduser().is_file():
            raise InputError(f"original_config is {str(original)!r}, which is no file; download it and pass its path")
        yaml = require("yaml", why="Reading original_config")
        text = original.read() if isinstance(original, BytesIO) else Path(original).expanduser().read_bytes()
        try:
            contents = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"original_config is not a YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(contents, dict) or "params" not in _at(contents, "model"):
        raise ConfigError("original_config has no `model.params`, which every configuration of latent diffusion has")
    return contents


def _at(contents: Any, *keys: str) -> Parsed:
    """Return what lies at a path of keys, an empty mapping where nothing does."""
    for key in keys:
        contents = contents.get(key) if isinstance(contents, Mapping) else None
    return contents if isinstance(contents, Mapping) else {}


def options_of(original: Parsed) -> dict[str, Config]:
    """Return component -> options that an original configuration states and shapes do not.

    "scheduler" holds the betas, "facts" what the network predicts and the side of its latents.
    """
    params = _at(original, "model", "params")
    unet = {**_at(params, "unet_config", "params"), **_at(params, "network_config", "params")}
    vae = _at(params, "first_stage_config", "params", "ddconfig")
    return {
        "unet": _unet(unet),
        "vae": _present({"scaling_factor": params.get("scale_factor"), "sample_size": vae.get("resolution")}),
        "scheduler": _present(
            {
                "beta_start": params.get("linear_start"),
                "beta_end": params.get("linear_end"),
                "num_train_timesteps": params.get("timesteps"),
            }
        ),
        "facts": _present({"prediction_type": _prediction(params), "latent_size": params.get("image_size")}),
    }


def _unet(unet: Parsed) -> Config:
    """Return the options of the UNet: the width or number of heads, and which levels attend to text only."""
    options: Config = {}
    widths = [unet["model_channels"] * factor for factor in unet["channel_mult"]] if "channel_mult" in unet else []
    heads, each = unet.get("num_heads", -1), unet.get("num_head_channels", -1)
    if each != -1 and widths:
        options["attention_head_dim"] = [width // each for width in widths]
    elif heads != -1:
        options["attention_head_dim"] = heads
    crossed = unet.get("disable_self_attentions")
    return options if crossed is None else {**options, "only_cross_attention": list(crossed)}


def _prediction(params: Parsed) -> str | None:
    """Return what the network predicts, in the words of schedulers."""
    scaling = str(_at(params, "denoiser_config", "params", "scaling_config").get("target", ""))
    if scaling:
        return "v_prediction" if scaling.rpartition(".")[2].startswith("V") else "epsilon"
    return {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}.get(params.get("parameterization", "eps"))


def _present(options: Config) -> Config:
    return {name: value for name, value in options.items() if value is not None}
