"""The files of a pipeline: which of them loading needs, by the caller's choices, and how they get here.

A folder holds model_index.json, which maps every component to `[library, class]`, and one folder per component. Old
unconditional repositories keep their only network and the scheduler at the root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError, InputError, check_known, did_you_mean
from ..core.files import is_local, read_json, resolve_folder
from ..core.hub import HUB_OPTIONS, fetch_chosen, fetch_file
from ..core.logging import get_logger
from ..core.report import some
from ..core.variants import Weights, advice, members, pick, weights_in, weights_of
from ..models.placement import resolve_dtype

logger = get_logger(__name__)
Dtype = torch.dtype | str
DtypeChoice = Dtype | Mapping[str, Dtype] | None

SKIPPED = (
    *(".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ot", ".xml"),
    *(".gguf", ".tflite", ".zip", ".md", ".py", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4"),
)
"""Ends of the names of files that no component reads, unless they are the weights that were chosen."""
Folders = Mapping[str, Sequence[str]]
"""The names of the files that each component's folder holds."""


@dataclass(frozen=True)
class Choices:
    """The caller's choices: types by component (with "default"), variant, pickled weights or not, casts kept or not."""

    dtypes: Mapping[str, torch.dtype | None]
    variant: str | None = None
    use_safetensors: bool | None = None
    keep_cast: bool = False

    def dtype(self, component: str) -> torch.dtype | str:
        """Return the type for a component: float32 unless asked otherwise, "auto" for the file's own."""
        return self.dtypes.get(component, self.dtypes.get("default", torch.float32)) or "auto"


def dtypes(torch_dtype: DtypeChoice, dtype: DtypeChoice) -> dict[str, torch.dtype | None]:
    """Return the types by component from the two documented spellings of the argument; None keeps a file's own.

    Raises:
        ConfigError: for an unknown type, or two different answers.
    """
    if not isinstance(torch_dtype, Mapping) and not isinstance(dtype, Mapping):
        return {"default": resolve_dtype(torch_dtype, dtype)}
    if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
        raise ConfigError(f"`torch_dtype` is {torch_dtype} and `dtype` is {dtype}; pass one of them.")
    choice = torch_dtype if torch_dtype is not None else dtype
    return {name: resolve_dtype(value, None) for name, value in choice.items()}  # type: ignore[union-attr]


def plan(folders: Folders, where: Any, choices: Choices) -> dict[str, Weights]:
    """Return the weights to load for every component that has any: the variant before the plain files.

    Without a variant the plain files are meant, or the only variant there is.

    Raises:
        InputError: when no component has the variant, or one has nothing that fits; with the files that are there.
    """
    found = {name: weights_in(names) for name, names in folders.items()}
    found = {name: weights for name, weights in found.items() if weights}
    variant, wish = choices.variant, choices.use_safetensors
    if variant is not None and found and all(variant != w.variant for weights in found.values() for w in weights):
        variants = sorted({w.variant for weights in found.values() for w in weights if w.variant})
        hint = did_you_mean(variant, variants) if variants else "; it has the plain weights only: leave `variant` out."
        files = sorted(f"{name}/{file}" for name in found for file in folders[name] if weights_of(file))
        raise InputError(f"No component of {where} has the variant {variant!r}{hint} Files there: {some(files)}")
    chosen = {}
    for name, weights in found.items():
        fitting = pick(weights, variant, wish) or pick({w for w in weights if w.variant is None}, None, wish)
        if fitting is None:
            hint = advice(weights, folders[name], variant=variant, use_safetensors=wish)
            asked = f"variant={variant!r}, use_safetensors={wish}"
            raise InputError(f"The component {name!r} of {where} has no weights for {asked}; {hint}")
        chosen[name] = fitting
    return chosen


def report(chosen: Mapping[str, Weights], where: Any, choices: Choices) -> None:
    """Say in the log which components come from other weights than those that were asked for."""
    for variant in {w.variant for w in chosen.values() if w.variant != choices.variant}:
        names = ", ".join(name for name, weights in chosen.items() if weights.variant == variant)
        if variant is None:
            logger.warning("No variant %r of %s in %s; the plain weights are taken.", choices.variant, names, where)
        else:
            logger.warning("%s of %s have no plain weights; their only variant %r is taken.", names, where, variant)


def by_component(files: Iterable[str], components: Iterable[str]) -> dict[str, list[str]]:
    """Return the files of every component in a repository by name: those of its folder, or of the root if it has none.

    A component of several networks has further folders, `controlnet_1` beside `controlnet`.
    """
    components = list(components)
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        folders.setdefault(folder, []).append(name)
    several = [name for name in folders if re.sub(r"_\d+$", "", name) in components and name not in components]
    return {name: folders.get(name, folders.get("", [])) for name in (*components, *several)}


def needed_files(files: Iterable[str], components: Iterable[str], choices: Choices, where: Any = "") -> list[str]:
    """Return the files of a repository that loading `components` needs: configurations and one kind of weights each.

    Raises:
        InputError: as `plan` does.
    """
    files = list(files)
    folders = by_component(files, components)
    chosen = plan(folders, where, choices)
    wanted = ["model_index.json"]
    for component, names in folders.items():
        own = f"{component}/"
        inside = any(file.startswith(own) for file in files)
        settings = [name for name in names if not name.endswith(SKIPPED) and weights_of(name) is None]
        settings = [name for name in settings if inside or name.endswith(".json")]
        wanted += [(own if inside else "") + name for name in (*settings, *members(names, chosen.get(component)))]
    return sorted(set(wanted))


def fetch(
    cls: type[Any],
    name_or_path: str | os.PathLike,
    *,
    choices: Choices,
    hub: Mapping[str, Any],
    given: Iterable[str] = (),
) -> Path:
    """Return the local folder of a pipeline, downloading from the hub what loading needs and the cache lacks.

    Args:
        given: components that the caller brings and that need no files.
    """
    hub = {name: value for name, value in hub.items() if value is not None}
    check_known(f"{cls.__name__}.download", hub, HUB_OPTIONS)
    if is_local(name_or_path):
        return resolve_folder(name_or_path)
    repo = os.fspath(name_or_path)
    path = fetch_file(repo, cls.config_name, **hub)
    index = read_json(path)
    listed = [name for name in listed_components(index) if name not in given]
    if re.fullmatch(r"[0-9a-f]{40}", path.parent.name):
        # Everything comes from the commit that the index came from, whatever is pushed meanwhile.
        hub = {**hub, "revision": path.parent.name}
    from . import custom

    code = custom.files(index)

    def choose(files: Iterable[str]) -> list[str]:
        wanted = [*needed_files(files, listed, choices, repo), *code]
        return [name for name in wanted if name != cls.config_name]

    return fetch_chosen(repo, choose, **hub)


def read_index(cls: type[Any], root: Path) -> dict[str, Any]:
    """Return the contents of a local pipeline's model_index.json.

    Raises:
        InputError: when there is none.
    """
    path = root / cls.config_name
    if not path.is_file():
        names = sorted(p.name for p in root.iterdir())
        raise InputError(
            f"{root} has no {cls.config_name}, so it is no pipeline; it holds: {', '.join(names) or 'nothing'}. "
            f"A single network or scheduler is loaded with its own class."
        )
    return read_json(path)


def listed_components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the components that model_index.json lists as present: name -> (library, class).

    Raises:
        ConfigError: for a component that is no name, such as one that leads to another folder, or a class that is none.
    """
    pairs = {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, (list, tuple)) and len(v) == 2}
    for name, pair in pairs.items():
        if not (name.isidentifier() and all(part is None or isinstance(part, str) for part in pair)):
            raise ConfigError(f"model_index.json lists {name!r}: {pair}, which is no component and its class.")
    return {name: (v[0], v[1]) for name, v in pairs.items() if v[0] is not None and v[1] is not None}
