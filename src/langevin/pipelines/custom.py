"""Community pipelines: a file of Python with one pipeline class, found, shown, and run with the caller's consent only.

A file is read once. What is hashed and reported is what runs; nothing is read a second time in between.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core.config import FORMAT_VERSION, to_json
from ..core.errors import ConfigError, InputError, did_you_mean
from ..core.files import atomic_write, is_local, missing, read_json, resolve_file, safe_join
from ..core.imports import late
from ..core.logging import get_logger

logger = get_logger(__name__)
FILE = "pipeline.py"
"""The file of a folder or hub repository."""
FOLDER_VARIABLE = "LANGEVIN_COMMUNITY"
"""The environment variable that names a folder of community pipelines, which is asked first."""
ADDRESS = "https://raw.githubusercontent.com/huggingface/diffusers/{revision}/examples/community/{name}.py"
"""Where the official community pipelines are."""
DIGEST = re.compile(r"(?:sha256:)?(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True)
class Source:
    """The text of a pipeline file, as it was read, and where it was."""

    path: Path
    content: bytes
    origin: str

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def read(cls, path: Path, origin: str | None = None) -> Source:
        """Read a file, once."""
        return cls(path, path.read_bytes(), origin or str(path))


@dataclass(frozen=True)
class Code:
    """What a call of `from_pretrained` says about code.

    Attributes:
        name: the `custom_pipeline`: a file, a folder, a hub repository, or the name of a community pipeline.
        revision: which revision of it.
        consent: the `trust_remote_code`: True, or the digest of the only content that may run.
        hub: options of the hub client.
    """

    name: str | os.PathLike | None = None
    revision: str | None = None
    consent: bool | str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> dict[str, Any]:
        """The hub options for the code, whose revision is its own."""
        hub = {name: value for name, value in self.hub.items() if name != "revision"}
        return hub if self.revision is None else {**hub, "revision": self.revision}


def written_class(index: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return (file without its ending, class) as model_index.json names them; the file is None for our own classes.

    Raises:
        ConfigError: when `_class_name` is neither a name nor a pair of names.
    """
    written = index.get("_class_name")
    if isinstance(written, (list, tuple)) and len(written) == 2 and all(isinstance(one, str) for one in written):
        return written[0], written[1]
    if written is not None and not isinstance(written, str):
        raise ConfigError(f"`_class_name` of model_index.json is {written!r}; it must be a name, or [file, class].")
    return None, written


def files(index: Mapping[str, Any]) -> list[str]:
    """Return the files of code that a pipeline's own folder has."""
    name, _ = written_class(index)
    return [] if name is None else [f"{name}.py"]


def target(code: Code, index: Mapping[str, Any], root: Path) -> Any:
    """Return the class that code describes, run with consent; None when no code is asked for.

    Args:
        index: the contents of model_index.json; its class is taken when the file has several.
        root: the folder of the weights, which may hold the code.

    Raises:
        ConfigError: without consent, before anything has run; or when the file has no pipeline class.
        InputError: when the file cannot be found.
    """
    own, wanted = written_class(index)
    if code.name is not None:
        source = find(code)
    elif own is not None:
        source = _in_folder(root, f"{own}.py")
    else:
        return None
    allow(source, code.consent)
    return pick_class(run(source), wanted, source, must=code.name is None)


# Finding the file ----------------------------------------------------------------------------------------------------


def find(code: Code) -> Source:
    """Return the file that `custom_pipeline` names.

    Raises:
        InputError: naming every place that was looked at.
    """
    name = os.fspath(code.name)
    path = Path(name).expanduser()
    if path.is_file():
        return Source.read(path)
    if path.is_dir():
        return _in_folder(path, FILE)
    if is_local(name) or name.endswith(".py"):
        raise missing(name)
    if "/" in name:
        return Source.read(resolve_file(name, FILE, **code.place), f"{FILE} of the hub repository {name!r}")
    return community(code)


def _in_folder(folder: Path, name: str) -> Source:
    path = safe_join(folder, name)
    if not path.is_file():
        there = sorted(p.name for p in folder.glob("*.py"))
        raise InputError(f"{folder} has no {name}; its Python files: {', '.join(there) or 'none'}.")
    return Source.read(path)


def community(code: Code) -> Source:
    """Return the file of a known community pipeline, from the folder of LANGEVIN_COMMUNITY or from its address.

    Addresses of a fixed revision are fetched once and kept beside the hub's cache.
    """
    name, looked = str(code.name), []
    if re.fullmatch(r"\w[\w-]*", name) is None:
        raise InputError(f"custom_pipeline={name!r} is no file, folder, hub repository or name of a pipeline.")
    if folder := os.environ.get(FOLDER_VARIABLE):
        path = Path(folder).expanduser() / f"{name}.py"
        if path.is_file():
            return Source.read(path)
        near = did_you_mean(name, (p.stem for p in path.parent.glob("*.py"))) if path.parent.is_dir() else "."
        looked.append(f"{path} ({FOLDER_VARIABLE}){near.rstrip('.')}")
    else:
        looked.append(f"no folder of community pipelines, since {FOLDER_VARIABLE} is not set")
    try:
        return _fetched(name, code)
    except InputError as error:
        places = "; ".join([*looked, str(error)])
        raise InputError(
            f"custom_pipeline={name!r} is no file or folder here, and no community pipeline: looked at {places}"
        ) from error


def _fetched(name: str, code: Code) -> Source:
    """Return an official community pipeline from the cache or from its address."""
    from huggingface_hub import constants

    from ..core.images import download

    wanted = code.revision or FORMAT_VERSION
    revision = f"v{wanted}" if re.fullmatch(r"\d+(\.\d+)*", wanted) else wanted
    address = ADDRESS.format(revision=revision, name=name)
    cache = Path(code.hub.get("cache_dir") or constants.HF_HUB_CACHE) / "community-pipelines"
    kept = safe_join(cache, f"{revision}/{name}.py")
    fixed = revision.startswith("v") or re.fullmatch(r"[0-9a-f]{40}", revision) is not None
    offline = bool(code.hub.get("local_files_only")) or constants.HF_HUB_OFFLINE
    if kept.is_file() and (offline or (fixed and not code.hub.get("force_download"))):
        return Source.read(kept, address)
    if offline:
        raise InputError(f"{address} was not asked (local_files_only or HF_HUB_OFFLINE), and {kept} does not exist.")
    content = download(address).getvalue()
    atomic_write(kept, content)
    return Source(kept, content, address)


# Consent and the class -----------------------------------------------------------------------------------------------


def allow(source: Source, consent: bool | str | None) -> None:
    """Raise ConfigError unless the caller lets this very content run."""
    lines = source.content.count(b"\n")
    what = f"{source.origin} is a program of {lines} lines (sha256 {source.digest})"
    if consent is True:
        logger.info("Running %s, as trust_remote_code=True allows.", what)
        return
    if isinstance(consent, str):
        named = DIGEST.fullmatch(consent.lower())
        if named is None:
            raise ConfigError(f"trust_remote_code is {consent!r}; pass True, or 'sha256:' and the digest of the file.")
        if named["digest"] != source.digest:
            raise ConfigError(f"{what}, and trust_remote_code allows sha256 {named['digest']} alone; nothing was run.")
        logger.info("Running %s, the content that trust_remote_code names.", what)
        return
    if consent not in (None, False):
        raise ConfigError(f"trust_remote_code is {consent!r}; pass True or the digest of the file.")
    raise ConfigError(
        f"{what} and would run with your rights; nothing was run. Read it: {source.path}. Then pass "
        f"trust_remote_code=True, or trust_remote_code='sha256:{source.digest}' to run this content and no other."
    )


def run(source: Source) -> ModuleType:
    """Run a file that is allowed to run, with `diffusers` leading to this library, and return its module."""
    name = f"community_{re.sub(r'[^0-9a-zA-Z_]', '_', source.path.stem)}_{source.digest[:16]}"
    return late("compat.running").load(source.content, filename=str(source.path), name=name)


def pick_class(module: ModuleType, wanted: str | None, source: Source, *, must: bool) -> Any:
    """Return the pipeline class of a file: its only one, the one that is wanted, or the last.

    Args:
        must: the class must have the name `wanted`.
    """
    from .base import DiffusionPipeline

    classes = {
        value.__name__: value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, DiffusionPipeline) and value.__module__ == module.__name__
    }
    if not classes:
        raise ConfigError(f"{source.origin} defines no class on DiffusionPipeline; a pipeline file has exactly one.")
    if must and wanted not in classes:
        raise ConfigError(f"{source.origin} has no class {wanted!r}{did_you_mean(str(wanted), classes)}")
    chosen = classes.get(str(wanted), [*classes.values()][-1])
    if len(classes) > 1:
        logger.info("%s has %s; %s is taken.", source.origin, ", ".join(classes), chosen.__name__)
    chosen._code = source
    return chosen


def keep(pipe: Any, folder: Path) -> None:
    """Put a community pipeline's file into the folder that it is saved in, and name it in model_index.json."""
    source = vars(type(pipe)).get("_code")
    if source is None:
        return
    atomic_write(folder / f"{source.path.stem}.py", source.content)
    index = folder / pipe.config_name
    pair = [source.path.stem, type(pipe).__name__]
    atomic_write(index, to_json({**read_json(index), "_class_name": pair}) + "\n")
