"""Pipelines on disk: which class, which files, which component; and the way back.

A folder holds model_index.json, which maps every component to `[library, class]`, and one folder per component. Old
unconditional repositories keep their only network and the scheduler at the root.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.errors import ConfigError, InputError, WeightsError, check_known, did_you_mean, nearest
from ..core.files import atomic_folder, is_local, read_json, resolve_folder
from ..core.hub import HUB_OPTIONS, fetch_chosen, fetch_file
from ..core.imports import require
from ..core.logging import get_logger
from ..core.report import some
from ..core.variants import SAFETENSORS, Weights, advice, members, pick, weights_in, weights_of
from ..models.placement import resolve_dtype
from ..registry import ROWS

if TYPE_CHECKING:
    from . import custom

logger = get_logger(__name__)
Dtype = torch.dtype | str
DtypeChoice = Dtype | Mapping[str, Dtype] | None

OUR_LIBRARY = "diffusers"
"""The documented name under which a folder lists classes of this library."""
LIBRARIES = {"StableDiffusionSafetyChecker": "stable_diffusion"}
"""Classes that the documented format files under another library name."""
RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""Class names of older folders -> present names."""
WRITTEN_AS = {"CLIPImageProcessorPil": "CLIPImageProcessor"}
"""Class names of one transformers version -> the name that every version reads."""
SKIPPED = (
    *(".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ot", ".xml"),
    *(".gguf", ".tflite", ".zip", ".md", ".py", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4"),
)
"""Ends of the names of files that no component reads, unless they are the weights that were chosen."""


@dataclass(frozen=True)
class Choices:
    """The caller's choices: types by component (with "default"), variant, and pickled weights or not."""

    dtypes: Mapping[str, torch.dtype | None]
    variant: str | None = None
    use_safetensors: bool | None = None

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


# Classes and components ----------------------------------------------------------------------------------------------


def our_class(name: str, what: str) -> Any:
    """Return the public class called `name`.

    Raises:
        ConfigError: naming the nearest class.
    """
    rows = {row.name: row for row in ROWS}
    if name not in rows:
        hint = did_you_mean(name, rows) if nearest(name, rows) else "."
        raise ConfigError(f"{what} is a {name!r}, which this library does not have{hint}")
    package = __name__.partition(".")[0]
    found = getattr(importlib.import_module(f"{package}.{rows[name].module}"), name)
    if not hasattr(found, "from_pretrained"):
        raise ConfigError(f"{what} is {name!r}, which is nothing that is loaded from a folder.")
    return found


def component_class(library: str, name: str, component: str) -> Any:
    """Return the class that a folder lists for a component.

    Raises:
        ConfigError: for a library whose code would have to be fetched and run, or an unknown class.
    """
    name = RENAMED.get(name, name)
    if library in (OUR_LIBRARY, __name__.partition(".")[0], *LIBRARIES.values()):
        return our_class(name, f"The component {component!r}")
    if library != "transformers":
        raise ConfigError(
            f"The component {component!r} is a {name} of {library!r}, which this library does not load; "
            f"build it yourself and pass `{component}=...`."
        )
    transformers = require("transformers", why=f"The component {component!r} ({name})", extra="torch")
    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise ConfigError(
            f"The component {component!r} is a {name}, which transformers {transformers.__version__} does not have."
        )
    return found


def unwrap(component: Any) -> Any:
    """Return the module inside a compiled one, or the component itself."""
    return getattr(component, "_orig_mod", component)


def identify(component: Any) -> list[str | None]:
    """Return the documented `[library, class]` of a component, `[None, None]` for an absent one."""
    if component is None:
        return [None, None]
    cls = type(unwrap(component))
    library = cls.__module__.partition(".")[0]
    library = OUR_LIBRARY if library == __name__.partition(".")[0] else library
    return [LIBRARIES.get(cls.__name__, library), WRITTEN_AS.get(cls.__name__, cls.__name__)]


def check_component(pipeline: str, name: str, component: Any) -> None:
    """Raise ConfigError for a value that can be no component, or a scheduler that cannot step."""
    if isinstance(component, (str, bytes, os.PathLike, int, float, Mapping, type)):
        what = f"the class {component.__name__}" if isinstance(component, type) else repr(component)
        raise ConfigError(f"`{name}` of {pipeline} is {what}; pass a built object.")
    if name == "scheduler" and component is not None and not callable(getattr(component, "step", None)):
        raise ConfigError(f"`scheduler` of {pipeline} is a {type(component).__name__}, which has no `step`.")


# Files ---------------------------------------------------------------------------------------------------------------


Folders = Mapping[str, Sequence[str]]
"""The names of the files that each component's folder holds."""


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


# Loading -------------------------------------------------------------------------------------------------------------


def load(
    cls: type[Any],
    name_or_path: str | os.PathLike,
    *,
    choices: Choices,
    given: Mapping[str, Any],
    hub: Mapping[str, Any],
    code: custom.Code,
) -> Any:
    """Build a pipeline of `cls`, or of the class its folder names when `cls` is the base; see `from_pretrained`."""
    root = fetch(cls, name_or_path, choices=choices, hub=hub, given=given)
    index = read_index(cls, root)
    target = _target(cls, index, root, code)
    accepted = constructor(target)
    check_known(f"{target.__name__}.from_pretrained", given, [*accepted, *_loading_options(target)])
    listed = {name: pair for name, pair in listed_components(index).items() if name not in given}
    check_known("torch_dtype", choices.dtypes, ["default", *listed, *accepted])
    ignored = sorted(set(listed) - set(accepted))
    if ignored:
        logger.warning("%s has no place for these components of %s: %s.", target.__name__, root, ", ".join(ignored))
    _check_complete(target, accepted, {*listed, *given}, root)
    options = {k: v for k, v in index.items() if k in accepted and not isinstance(v, (list, tuple))}
    parts = load_components({name: pair for name, pair in listed.items() if name in accepted}, root, choices)
    pipe = target(**{**dict.fromkeys(absent(target, accepted, {*parts, *given})), **options, **parts, **given})
    pipe._name_or_path = os.fspath(name_or_path)
    return pipe


def _target(cls: type[Any], index: Mapping[str, Any], root: Path, code: custom.Code) -> Any:
    """Return the class to build: that of the caller's code, the one that was asked for, or the one the folder names."""
    if code.name is None and cls.__init__ is not object.__init__:
        return cls
    from . import custom

    return custom.target(code, index, root) or our_class(index.get("_class_name", "?"), f"The pipeline {root}")


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


def constructor(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Return what a pipeline class is built with: its components and options by name."""
    return {name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}


def _loading_options(cls: type[Any]) -> list[str]:
    """Return the keywords of `from_pretrained` itself, for the hint of an error."""
    parameters = inspect.signature(cls.from_pretrained).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def absent(cls: type[Any], accepted: Mapping[str, inspect.Parameter], present: set[str]) -> list[str]:
    """Return the optional components without a default that are not there and become None."""
    required = [name for name, p in accepted.items() if p.default is p.empty and name not in present]
    return [name for name in required if name in cls._optional_components]


def lacking(cls: type[Any], accepted: Mapping[str, inspect.Parameter], present: Iterable[str]) -> list[str]:
    """Return the components that a class cannot be built without and that are not there."""
    required = [name for name, p in accepted.items() if p.default is p.empty and name not in cls._optional_components]
    return [name for name in required if name not in present]


def _check_complete(cls: type[Any], accepted: Mapping[str, inspect.Parameter], present: set[str], root: Path) -> None:
    missing = lacking(cls, accepted, present)
    if missing:
        raise ConfigError(
            f"{root} does not list {', '.join(missing)}, which {cls.__name__} needs; pass `{missing[0]}=...`."
        )


def _folder(root: Path, name: str) -> Path:
    """Return the folder of a component: its own, or the root of old unconditional repositories."""
    if (root / name).is_dir():
        return root / name
    if any((root / file).is_file() for file in ("config.json", "scheduler_config.json")):
        return root
    raise InputError(f"{root} lists the component {name!r} but has no folder {name}.")


def load_components(listed: Mapping[str, tuple[str, str]], root: Path, choices: Choices) -> dict[str, Any]:
    """Build the components that are listed by library and class, each from its folder below `root`."""
    classes = {name: component_class(*pair, name) for name, pair in listed.items()}
    networks = [name for name, cls in classes.items() if issubclass(cls, nn.Module)]
    chosen = plan({name: sorted(p.name for p in _folder(root, name).iterdir()) for name in networks}, root, choices)
    report(chosen, root, choices)
    return {name: load_component(name, cls, root, chosen.get(name), choices) for name, cls in classes.items()}


def load_component(name: str, cls: type[Any], root: Path, chosen: Weights | None, choices: Choices) -> Any:
    """Build one component from its folder, a network from the weights that were chosen for it."""
    folder = _folder(root, name)
    if not issubclass(cls, nn.Module):
        return cls.from_pretrained(folder)
    kind = chosen.kind == SAFETENSORS if chosen else choices.use_safetensors
    options = {"variant": chosen.variant if chosen else None, "use_safetensors": kind}
    if not any(base.__module__.startswith("transformers.") for base in cls.__mro__):
        return cls.from_pretrained(folder, torch_dtype=choices.dtype(name), **options)  # type: ignore[attr-defined]
    return _load_foreign(cls, folder, dtype=choices.dtype(name), **options)


def _load_foreign(cls: type[Any], folder: Path, **options: Any) -> nn.Module:
    """Load a transformers model; unlike there, missing and damaged weights are errors."""
    try:
        with _quiet():
            module, report = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except Exception as error:  # transformers and safetensors raise many types for a damaged file
        raise WeightsError(f"{folder} cannot be loaded as a {cls.__name__}: {error}") from error
    if report["missing_keys"]:
        keys = sorted(report["missing_keys"])
        raise WeightsError(f"{folder} lacks {len(keys)} weights of {cls.__name__}: {', '.join(keys[:5])}.")
    return module.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of transformers meanwhile."""
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


# Saving --------------------------------------------------------------------------------------------------------------


def save(pipe: Any, path: str | os.PathLike, options: Mapping[str, Any]) -> None:
    """Write a pipeline's folder, whole or not at all; see `save_pretrained`."""
    present = {name: unwrap(c) for name, c in pipe.components.items() if c is not None}
    for name, component in present.items():
        if not callable(getattr(component, "save_pretrained", None)):
            raise ConfigError(
                f"The component {name!r} ({type(component).__name__}) has no save_pretrained; nothing was written."
            )
    from . import custom

    with atomic_folder(path) as folder:
        pipe.save_config(folder)
        custom.keep(pipe, folder)
        for name, component in present.items():
            _save_component(component, folder / name, options)


def _save_component(component: Any, folder: Path, options: Mapping[str, Any]) -> None:
    """Save one component with those of the options that it knows."""
    known = inspect.signature(component.save_pretrained).parameters
    if isinstance(component, nn.Module) and not options["safe_serialization"] and "safe_serialization" not in known:
        logger.warning("%s is always saved as safetensors.", type(component).__name__)
    chosen = {name: value for name, value in options.items() if name in known and value is not None}
    if not type(component).__module__.startswith("transformers."):
        component.save_pretrained(folder, **chosen)
        return
    with _quiet():
        component.save_pretrained(folder, **chosen)
