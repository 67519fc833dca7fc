"""Files of adapters: which file a name means, its tensors and metadata, and writing one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, InputError, check_known
from ..core.files import atomic_file, is_local, missing, read_json, resolve_file, safe_join
from ..core.hub import HUB_OPTIONS, hub_options
from ..core.report import some
from ..core.weights_io import write_pickled, write_safetensors
from ..weights.checkpoint import open_weights, read_tensors
from ..weights.dialects.peft import METADATA

SAFE, PICKLED = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"
KNOWN = (SAFE, PICKLED, "adapter_model.safetensors", "adapter_model.bin")
"""Names that are looked for first, in this order."""
ENDS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
PEFT_CONFIG = "adapter_config.json"
OPTIONS = (
    *("adapter_name", "weight_name", "subfolder", "use_safetensors", "metadata", "network_alphas"),
    *("low_cpu_mem_usage", "_pipeline", *HUB_OPTIONS),
)
"""Keywords of loading. `low_cpu_mem_usage` and `_pipeline` are accepted for their callers and have no effect."""


@dataclass
class Source:
    """The tensors of an adapter before they are read.

    Attributes:
        state: name -> tensor.
        metadata: the strings stored with them.
        what: how the file is called in messages.
    """

    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    what: str = "The state dict"


def opened(where: Any, what: str, options: Mapping[str, Any], **more: Any) -> Source:
    """Return the tensors of an adapter for a documented loading method, its alphas and metadata with them.

    Raises:
        ConfigError: for an unknown keyword.
    """
    check_known(what, options, OPTIONS)
    places: dict[str, Any] = {name: options.get(name) for name in ("weight_name", "subfolder", "use_safetensors")}
    source = open_source(where, **places, **hub_options(options), **more)
    return with_alphas(source, options.get("network_alphas"), options.get("metadata"))


def with_alphas(
    source: Source, alphas: Mapping[str, float] | None = None, metadata: Mapping[str, Any] | None = None
) -> Source:
    """Return a source with alphas given by name, and with a configuration as PEFT's metadata have it."""
    state = dict(source.state)
    for name, value in (alphas or {}).items():
        state[name if name.endswith(".alpha") else f"{name}.alpha"] = torch.as_tensor(float(value))
    kept = dict(source.metadata)
    if metadata:
        kept[METADATA] = json.dumps(dict(metadata), default=str)
    return Source(state, kept, source.what)


def open_source(
    where: str | os.PathLike | Mapping[str, Tensor],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    names: Sequence[str] = KNOWN,
    **hub: Any,
) -> Source:
    """Return the tensors of a file, of the only adapter in a folder or a repository, or of a state dict.

    Args:
        where: a file, a folder, a hub repository, or name -> tensor.
        weight_name: the file in the folder or repository.
        subfolder: folder inside it.
        use_safetensors: True for .safetensors alone, False for pickled files alone.
        names: file names that are taken before others when no `weight_name` is given.
        hub: see `core.hub`.

    Raises:
        InputError: no such file, or several that it could be.
        WeightsError: a damaged file, or one that holds something else.
    """
    if isinstance(where, Mapping):
        return Source(dict(where))
    path = Path(where).expanduser()
    if not path.is_file():
        weight_name = weight_name or choose(where, subfolder=subfolder, safe=use_safetensors, names=names, **hub)
        path = resolve_file(where, weight_name, subfolder=subfolder, **hub)
    with open_weights(path) as file:
        state, metadata = read_tensors(file), dict(file.metadata)
    config = path.parent / PEFT_CONFIG
    if METADATA not in metadata and path.name in KNOWN[2:] and config.is_file():
        metadata[METADATA] = json.dumps(read_json(config))
    return Source(state, metadata, str(path))


def choose(
    where: str | os.PathLike, *, subfolder: str | None, safe: bool | None, names: Sequence[str], **hub: Any
) -> str:
    """Return the name of the only file in a folder or a repository that can be an adapter.

    Raises:
        InputError: none, or several without one of the `names` among them; the message lists what is there.
    """
    files = listed(where, subfolder=subfolder, **hub)
    ends = ENDS if safe is None else ENDS[:1] if safe else ENDS[1:]
    candidates = [name for name in files if name.endswith(ends)]
    known = next((name for name in names if name in candidates), None)
    if known is not None:
        return known
    best = [name for name in candidates if name.endswith(ENDS[0])] or candidates
    place = os.path.join(os.fspath(where), subfolder or "")
    if not best:
        raise InputError(f"{place} has no adapter file ({', '.join(ends)}); it holds: {some(files) or 'nothing'}.")
    if len(best) > 1:
        raise InputError(
            f"{place} holds several files that could be the adapter; give weight_name=, one of: {some(best)}."
        )
    return best[0]


def listed(where: str | os.PathLike, *, subfolder: str | None, **hub: Any) -> list[str]:
    """Return the names of the files of a folder or a repository, without those deeper down."""
    path = Path(where).expanduser()
    if is_local(where):
        folder = safe_join(path, subfolder) if subfolder else path
        if not folder.is_dir():
            raise missing(folder)
        return sorted(file.name for file in folder.iterdir() if file.is_file())
    from ..core.hub import list_files

    if hub.get("local_files_only"):
        raise InputError(f"{where!r} cannot be listed without the hub; give weight_name=, the file in the repository.")
    found = list_files(os.fspath(where), **{k: hub[k] for k in ("revision", "token") if k in hub})
    start = f"{subfolder}/" if subfolder else ""
    names = [name.removeprefix(start) for name in found if name.startswith(start)]
    return sorted(name for name in names if "/" not in name)


def write_tensors(
    folder: str | os.PathLike,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    weight_name: str | None = None,
    safe: bool = True,
    save_function: Callable[[Mapping[str, Tensor], Any], None] | None = None,
) -> Path:
    """Write an adapter into a folder, whole or not at all, and return the path of the file.

    Raises:
        InputError: a file in the folder's place.
        ConfigError: metadata that a pickled file cannot hold.
    """
    if Path(folder).is_file():
        raise InputError(f"{folder} is a file; give the folder to save into, and the file's name as weight_name=.")
    if not safe and METADATA in metadata:
        raise ConfigError(
            "A pickled file cannot hold the ranks and alphas of this dialect; save with safe_serialization=True, or in "
            "the dialect 'kohya', which keeps them beside the tensors."
        )
    path = safe_join(folder, weight_name or (SAFE if safe else PICKLED))
    with atomic_file(path) as partial:
        if save_function is not None:
            save_function(state, partial)
        elif safe:
            write_safetensors(partial, state, {"format": "pt", **metadata})
        else:
            write_pickled(partial, {name: tensor.detach().cpu().clone() for name, tensor in state.items()})
    return path
