"""From the files of a pipeline to its components and its class, and the way back; `files` says what a folder holds."""

from __future__ import annotations

import importlib
import os
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..core.config import keywords, options_of
from ..core.errors import ConfigError, InputError, WeightsError, check_known, did_you_mean, nearest
from ..core.files import atomic_folder
from ..core.imports import require
from ..core.logging import get_logger
from ..core.variants import SAFETENSORS, Weights
from ..nn.compiled import bare
from ..registry import ROWS
from .files import Choices, fetch, listed_components, plan, read_index, report

if TYPE_CHECKING:
    from . import custom

logger = get_logger(__name__)

OUR_LIBRARY = "diffusers"
"""The documented name under which a folder lists classes of this library."""
LIBRARIES = {"StableDiffusionSafetyChecker": "stable_diffusion"}
"""Classes that the documented format files under another library name."""
RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""Class names of older folders -> present names."""
WRITTEN_AS = {"CLIPImageProcessorPil": "CLIPImageProcessor"}
"""Class names of one transformers version -> the name that every version reads."""


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


def identify(component: Any) -> list[str | None]:
    """Return the documented `[library, class]` of a component, `[None, None]` for an absent one."""
    if component is None:
        return [None, None]
    cls = type(bare(component))
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
    accepted = options_of(target)
    check_known(f"{target.__name__}.from_pretrained", given, [*accepted, *keywords(target.from_pretrained)])
    listed = {name: pair for name, pair in listed_components(index).items() if name not in given}
    check_known("torch_dtype", choices.dtypes, ["default", *listed, *accepted])
    ignored = sorted(set(listed) - set(accepted))
    if ignored:
        logger.warning("%s has no place for these components of %s: %s.", target.__name__, root, ", ".join(ignored))
    missing = lacking(target, {*listed, *given})
    if missing:
        raise ConfigError(
            f"{root} does not list {', '.join(missing)}, which {target.__name__} needs; pass `{missing[0]}=...`."
        )
    options = {k: v for k, v in index.items() if k in accepted and not isinstance(v, (list, tuple))}
    parts = load_components({name: pair for name, pair in listed.items() if name in accepted}, root, choices)
    pipe = target(**{**dict.fromkeys(absent(target, {*parts, *given})), **options, **parts, **given})
    pipe._name_or_path = os.fspath(name_or_path)
    return pipe


def _target(cls: type[Any], index: Mapping[str, Any], root: Path, code: custom.Code) -> Any:
    """Return the class to build: that of the caller's code, the one that was asked for, or the one the folder names."""
    if code.name is None and cls.__init__ is not object.__init__:
        return cls
    from . import custom

    return custom.target(code, index, root) or our_class(index.get("_class_name", "?"), f"The pipeline {root}")


def absent(cls: type[Any], present: Container[str]) -> list[str]:
    """Return the optional components without a default that are not there and become None."""
    return [name for name in _without_default(cls, present) if name in cls._optional_components]


def lacking(cls: type[Any], present: Container[str]) -> list[str]:
    """Return the components that a class cannot be built without and that are not there."""
    return [name for name in _without_default(cls, present) if name not in cls._optional_components]


def _without_default(cls: type[Any], present: Container[str]) -> list[str]:
    return [name for name, p in options_of(cls).items() if p.default is p.empty and name not in present]


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
        options["keep_cast"] = choices.keep_cast
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
    present = {name: bare(c) for name, c in pipe.components.items() if c is not None}
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
    known = keywords(component.save_pretrained)
    if isinstance(component, nn.Module) and not options["safe_serialization"] and "safe_serialization" not in known:
        logger.warning("%s is always saved as safetensors.", type(component).__name__)
    chosen = {name: value for name, value in options.items() if name in known and value is not None}
    if not type(component).__module__.startswith("transformers."):
        component.save_pretrained(folder, **chosen)
        return
    if (backend := getattr(component, "backend_tokenizer", None)) is not None:
        # Those of the last call, which says them anew every time; what is written should not depend on what was read.
        backend.no_padding()
        backend.no_truncation()
    with _quiet():
        component.save_pretrained(folder, **chosen)
