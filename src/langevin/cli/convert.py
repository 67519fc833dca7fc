"""`langevin convert`: from a single file in its authors' layout to a folder, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..core.errors import InputError, WeightsError
from ..core.files import read_json
from ..models.placement import resolve_dtype
from ..pipelines import loading
from ..pipelines.base import DiffusionPipeline
from ..pipelines.keras import component_of, from_keras
from ..weights.family import Facts
from ..weights.keras import refuse_program
from ..weights.saving import SUFFIXES, save
from ..weights.single_file import SingleFile, model_class
from ..weights.wishes import locate, wishes_of
from .output import writing


def run(
    source: str,
    target: str,
    *,
    dtype: str = "auto",
    layout: str | None = None,
    base: str | None = None,
    keras_text_encoder: str | None = None,
    placeholder_token: Sequence[str] = (),
    **options: Any,
) -> tuple[str, list[str]]:
    """Convert a file or folder, and return what it is, and what was written.

    Args:
        source: a single file, its address on the hub, or a folder of a pipeline or network.
        target: a folder; or a .safetensors or .ckpt file, which is written in the authors' layout.
        dtype: type of the weights that are written, "auto" for the source's own.
        layout: family of the layout to write, told from the networks when None.
        base: a pipeline, in whose place `source` and `keras_text_encoder` stand, files of KerasCV.
        placeholder_token: words that the text encoder learned.
        options: of `from_single_file`, for a single file.
    Raises:
        InputError: when the target exists.
    """
    refuse_existing(target)
    kept = resolve_dtype(dtype, None)
    given = {name: value for name, value in options.items() if value not in (None, False)}
    if base is not None:
        pipe, what = read_keras(source, base, keras_text_encoder, placeholder_token, dtype=dtype, unneeded=given), None
    elif keras_text_encoder or placeholder_token:
        raise InputError("--keras-text-encoder and --placeholder-token need --base, a folder with the whole pipeline")
    elif Path(source).expanduser().is_dir():
        if given:
            raise InputError(f"{source} is a folder, whose configuration needs no {', '.join(sorted(given))}")
        pipe, what = read_folder(Path(source).expanduser(), dtype), None
    else:
        pipe, facts = read_file(source, torch_dtype=dtype, **given)
        what = facts.explain()
    said = what or f"{type(pipe).__name__} in {source}"
    with writing(Path(target), "name another target"):
        if Path(target).suffix not in SUFFIXES:
            return said, write_folder(pipe, Path(target))
        written = save(parts_of(pipe), target, layout=layout, dtype=kept)
        return said, [f"{target}: {', '.join(written)}"]


def refuse_existing(target: str | os.PathLike) -> None:
    """Raise InputError when a file, or a folder that is not empty, stands where the result is to go."""
    path = Path(target)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path} exists already; name another target, or remove it first")


def write_folder(thing: Any, target: Path, **options: Any) -> list[str]:
    """Save a pipeline or network into a folder and return the paths of what was written.

    A folder that is there already, the current one perhaps, stays the same folder: all is written beside its contents
    first and moved in at the end.

    Args:
        options: of `save_pretrained`.
    Raises:
        InputError: when a folder would be replaced.
    """
    if not target.is_dir():
        thing.save_pretrained(target, **options)
        return sorted(str(path) for path in target.iterdir())
    with TemporaryDirectory(dir=target, prefix=".convert-") as partial:
        thing.save_pretrained(Path(partial) / "result", **options)
        entries = sorted((Path(partial) / "result").iterdir())
        taken = [entry.name for entry in entries if (target / entry.name).is_dir()]
        if taken:
            raise InputError(f"{target} holds {', '.join(taken)} already; name another folder, or remove them first")
        for entry in entries:
            os.replace(entry, target / entry.name)
    return [str(target / entry.name) for entry in entries]


def parts_of(thing: Any) -> Mapping[str, Any]:
    """Return the components of a pipeline, or a single network under the name it usually has."""
    if isinstance(thing, DiffusionPipeline):
        return thing.components
    usual = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}
    return {usual.get(type(thing).__name__, type(thing).__name__): thing}


def read_folder(folder: Path, dtype: str) -> Any:
    """Return the pipeline or the network of a folder in the documented layout.

    Raises:
        InputError: when the folder is neither.
    """
    if (folder / "model_index.json").is_file():
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    refuse_program(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has neither a model_index.json nor a config.json, so it is no pipeline or network")
    name = read_json(folder / "config.json").get("_class_name", "")
    return model_class(str(name)).from_pretrained(folder, torch_dtype=dtype)  # type: ignore[attr-defined]


def read_keras(
    source: str,
    base: str,
    text_encoder: str | None,
    words: Sequence[str],
    *,
    dtype: str,
    unneeded: Mapping[str, Any],
) -> Any:
    """Return the pipeline of a folder with files of KerasCV in it; `source` is the UNet's or the text encoder's.

    Raises:
        InputError: for two text encoders, or options that the base answers.
    """
    if unneeded:
        raise InputError(f"the base answers what {', '.join(sorted(unneeded))} says; leave it out")
    files: dict[str, Any] = {component_of(source): source}
    if text_encoder is not None and "text_encoder" in files:
        raise InputError(f"{source} is a text encoder, and --keras-text-encoder names another; pass the UNet first")
    if text_encoder is not None:
        files["text_encoder"] = text_encoder
    return from_keras(base, placeholder_token=words, torch_dtype=dtype, **files)


def read_file(
    source: str, *, pipeline_class: str | None = None, controlnet: bool = False, **options: Any
) -> tuple[Any, Facts]:
    """Return the pipeline of a single file, or its only network, and what the file is.

    Args:
        pipeline_class: name of the class to build in place of the file's own.
        controlnet: take the ControlNet of the file and nothing else.
        options: of `from_single_file`.
    """
    stated = {name: options.get(name) for name in ("config", "original_config", "prediction_type", "image_size")}
    with SingleFile(locate(source), wishes_of(hub={}, **stated)) as file:
        facts, networks = file.facts, [place.layout.model for place in file.places.values()]
    if controlnet or (pipeline_class is None and (facts.pipeline is None or len(networks) == 1)):
        if controlnet and "ControlNetModel" not in networks:
            raise WeightsError(f"{source} holds no ControlNet. It is {facts.explain()}")
        return read_network(source, "ControlNetModel" if controlnet else networks[0], options), facts
    cls = loading.our_class(str(pipeline_class or facts.pipeline), f"The pipeline of {source}")
    return cls.from_single_file(source, **options), facts


def read_network(source: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return one network of a single file; `options` of pipelines that networks do not have are for its schedule."""
    alone = ("torch_dtype", "config", "original_config", "extract_ema", "strict")
    chosen = {key: value for key, value in options.items() if key in alone}
    upcast = options.get("upcast_attention")
    if upcast is not None and name in ("UNet2DConditionModel", "ControlNetModel"):
        chosen["upcast_attention"] = upcast
    model: Any = model_class(name)
    if not hasattr(model, "from_single_file"):
        raise InputError(f"{source} holds a {model.__name__} alone; name the pipeline it belongs to with --base")
    return model.from_single_file(source, **chosen)
