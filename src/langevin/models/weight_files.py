"""The weight files of a network's folder: what they are called, which of them to read, and how they are written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError, WeightsError
from ..core.files import atomic_folder, is_local, leads_out, resolve_folder, safe_join
from ..core.hub import fetch_chosen
from ..core.logging import get_logger
from ..core.report import some
from ..core.variants import KINDS, PICKLE, SAFETENSORS, advice, is_part, members, pick, weights_in, weights_of
from ..core.weights_io import count_bytes, describe, write_safetensors

logger = get_logger(__name__)
STEM = "diffusion_pytorch_model"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass
class WeightFiles:
    """The weights of one model: which file holds which tensor.

    Attributes: files, in order of reading; owner, tensor name -> file, or None for a single file.
    """

    files: tuple[Path, ...]
    owner: dict[str, Path] | None = None

    @classmethod
    def from_index(cls, index: Path) -> WeightFiles:
        """Read a shard index; names that lead out of the folder are refused, and every missing shard is named."""
        try:
            table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            owner = {str(name): safe_join(index.parent, shard) for name, shard in table.items()}
        except InputError as error:
            raise WeightsError(f"{index} is refused: {error}") from error
        except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{index} is not a shard index: it is {describe(index)}") from error
        files = tuple(sorted(set(owner.values())))
        abroad = [file.name for file in files if leads_out(file, index.parent)]
        if abroad:
            names = ", ".join(abroad)
            raise WeightsError(f"{index} is refused: shards that are links lead outside the folder: {names}")
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise WeightsError(f"{index.name} names shards that {index.parent} does not hold: {', '.join(absent)}")
        return cls(files, owner)

    def owned(self, file: Path, names: Iterable[str]) -> Iterator[str]:
        """Yield the names that are to be taken from `file`."""
        for name in names:
            if self.owner is None or self.owner.get(name, file) == file:
                yield name


def weight_name(kind: str, variant: str | None = None, shard: tuple[int, int] | None = None) -> str:
    """Return the documented name of a weight file: stem[.variant][-0000k-of-0000n].kind."""
    stem = f"{STEM}.{variant}" if variant else STEM
    return f"{stem}.{kind}" if shard is None else f"{stem}-{shard[0]:05d}-of-{shard[1]:05d}.{kind}"


def index_name(kind: str, variant: str | None = None) -> str:
    """Return the documented name of a shard index: stem.kind.index[.variant].json."""
    return f"{STEM}.{kind}.index.{variant}.json" if variant else f"{STEM}.{kind}.index.json"


def is_weight_name(name: str, kind: str, variant: str | None) -> bool:
    """Tell whether a file name is a weight file, a shard or an index of this kind and variant."""
    return name.startswith(STEM) and weights_of(name) == (variant, kind)


def find_weights(
    name_or_path: str | os.PathLike,
    *,
    subfolder: str | None,
    variant: str | None,
    use_safetensors: bool | None,
    **hub: Any,
) -> WeightFiles:
    """Return the weight files of a local folder or hub repository, safetensors before .bin.

    Without a variant the plain files are meant, or the only variant there is, which is logged.
    Raises WeightsError listing the files that are there when the wanted ones are not.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    local = is_local(name_or_path)
    chosen: list[str] = []

    def choose(names: Iterable[str]) -> list[str]:
        here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        here = [name for name in here if "/" not in name]
        where = folder if local else f"{os.fspath(name_or_path)}/{prefix}".rstrip("/")
        chosen[:] = _choose(here, where, variant, use_safetensors)
        return [prefix + name for name in chosen]

    if local:
        root = resolve_folder(name_or_path)
        folder = safe_join(root, subfolder) if subfolder else root
        choose(prefix + file.name for file in (folder.iterdir() if folder.is_dir() else ()))
    else:
        root = fetch_chosen(os.fspath(name_or_path), choose, **hub)
        folder = safe_join(root, subfolder) if subfolder else root
    index = next((name for name in chosen if name.endswith(".json")), None)
    return WeightFiles.from_index(folder / index) if index else WeightFiles((folder / chosen[0],))


def _choose(names: Sequence[str], where: Any, variant: str | None, use_safetensors: bool | None) -> list[str]:
    """Return which files of a model's folder to read."""
    wanted = " or ".join(weight_name(kind, variant) for kind in KINDS[use_safetensors])
    if not names:
        raise WeightsError(f"{where} has no {wanted}: the folder does not exist or is empty")
    own = [name for name in names if name.startswith(f"{STEM}.") or name.startswith(f"{STEM}-")]
    found = weights_in(own)
    weights = pick(found, variant, use_safetensors)
    files = members(own, weights)
    if weights is None:
        cure = advice(found, names, variant=variant, use_safetensors=use_safetensors)
        raise WeightsError(f"{where} has no {wanted}; {cure}")
    if weights.variant != variant:
        logger.warning("%s has no plain weights; its only variant %r is taken.", where, weights.variant)
    if all(map(is_part, files)) and not any(name.endswith(".json") for name in files):
        raise WeightsError(f"{where} has shards ({some(sorted(files))}) and no index that says what is in them")
    return files


def save_model(
    state: Mapping[str, Tensor],
    folder: str | os.PathLike,
    *,
    config_name: str,
    config: str,
    variant: str | None,
    safe_serialization: bool,
    max_shard_size: int | str,
    save_function: Callable[[Mapping[str, Tensor], Path], None] | None,
) -> None:
    """Write configuration, weights and, for several shards, their index into `folder`, all of it or nothing.

    Weight files of the same kind and variant that an earlier save left are replaced; other files stay.
    """
    if os.path.isfile(folder):
        raise InputError(f"{folder} is a file; save_pretrained needs a folder")
    if variant is not None and not re.fullmatch(r"\w[\w.-]*", variant):
        raise InputError(f"variant is {variant!r}; as part of a file name it may hold letters, digits, -, _ and .")
    for name, tensor in state.items():
        if hasattr(tensor, "__tensor_flatten__"):
            what = f"the weight {name!r} is quantised ({type(tensor).__name__})"
            raise WeightsError(f"{what}, which weight files do not hold; save the model before it is quantised")
    kind = SAFETENSORS if safe_serialization else PICKLE
    shards = split_into_shards(state, parse_size(max_shard_size))
    if len(shards) == 1:
        files = {weight_name(kind, variant): shards[0]}
    else:
        files = {weight_name(kind, variant, (k + 1, len(shards))): shard for k, shard in enumerate(shards)}
    with atomic_folder(folder, drop=lambda name: is_weight_name(name, kind, variant)) as partial:
        (partial / config_name).write_text(config, encoding="utf-8")
        for name, shard in files.items():
            if save_function is not None:
                save_function(shard, partial / name)
            elif safe_serialization:
                write_safetensors(partial / name, shard, {"format": "pt"})
            else:
                torch.save({key: tensor.detach().cpu().clone() for key, tensor in shard.items()}, partial / name)
        if len(files) > 1:
            (partial / index_name(kind, variant)).write_text(shard_index(files), encoding="utf-8")
    preferred = weight_name(SAFETENSORS, variant)
    if not safe_serialization and (Path(folder) / preferred).is_file():
        logger.warning("%s also holds %s, which loading prefers: delete it or save safetensors", folder, preferred)


def parse_size(size: int | str) -> int:
    """Return a number of bytes from an integer or a text such as "10GB", "500MB" or "1GiB".

    Raises InputError for another form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", str(size), flags=re.IGNORECASE)
    value = int(float(found.group(1)) * UNITS[found.group(2).upper()]) if found else size
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InputError(f"{size!r} is not a size; give a number of bytes or a text such as '10GB' or '500MB'")
    return value


def split_into_shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Return the tensors in order, in groups of at most `limit` bytes; a larger tensor stands alone."""
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = count_bytes(tensor.shape, tensor.dtype)
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def shard_index(files: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return the text of a shard index: the total number of bytes, and the file of every tensor, names sorted."""
    total = sum(count_bytes(tensor.shape, tensor.dtype) for shard in files.values() for tensor in shard.values())
    owner = {name: file for file, shard in files.items() for name in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": owner}, indent=2, sort_keys=True) + "\n"
