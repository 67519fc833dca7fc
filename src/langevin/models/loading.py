"""From a folder to a model and back: find weight files, compare names, place tensors, save whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, WeightsError, did_you_mean
from ..core.files import atomic_folder, is_local, resolve_folder, safe_join
from ..core.hub import fetch_chosen
from ..core.logging import get_logger
from ..core.report import LoadReport, some
from ..core.variants import KINDS, PICKLE, SAFETENSORS, advice, is_part, members, pick, weights_in
from ..core.weights_io import (
    Part,
    TensorFile,
    WeightFiles,
    parse_size,
    split_into_shards,
    write_safetensors,
)

logger = get_logger(__name__)
STEM = "diffusion_pytorch_model"

LEGACY_ATTENTION: tuple[tuple[str, str], ...] = (
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
)
"""Names of attention layers in old checkpoints: pattern in the file, present name."""


# -- finding files ------------------------------------------------------------------------------------------------


def weight_name(kind: str, variant: str | None = None, shard: tuple[int, int] | None = None) -> str:
    """Return the documented name of a weight file: stem[.variant][-0000k-of-0000n].kind."""
    stem = f"{STEM}.{variant}" if variant else STEM
    return f"{stem}.{kind}" if shard is None else f"{stem}-{shard[0]:05d}-of-{shard[1]:05d}.{kind}"


def index_name(kind: str, variant: str | None = None) -> str:
    """Return the documented name of a shard index: stem.kind.index[.variant].json."""
    return f"{STEM}.{kind}.index.{variant}.json" if variant else f"{STEM}.{kind}.index.json"


def is_weight_name(name: str, kind: str, variant: str | None) -> bool:
    """Tell whether a file name is a weight file, a shard or an index of this kind and variant."""
    stem = re.escape(f"{STEM}.{variant}" if variant else STEM)
    suffix = re.escape(f".{variant}") if variant else ""
    shard = rf"({stem}(-\d{{5}}-of-\d{{5}})?|{re.escape(STEM)}-\d{{5}}-of-\d{{5}}{suffix})\.{kind}"
    indexes = map(re.escape, {index_name(kind, variant), f"{weight_name(kind, variant)}.index.json"})
    return re.fullmatch("|".join([shard, *indexes]), name) is not None


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


# -- comparing and placing ------------------------------------------------------------------------------------------


class Checkpoint:
    """The tensors of a set of weight files under their present names, opened but not read.

    Attributes: shapes, name -> shape; report.renamed. Use as a context manager.
    """

    def __init__(
        self,
        files: WeightFiles,
        *,
        known: Mapping[str, Tensor],
        renames: Sequence[tuple[str, str]] = LEGACY_ATTENTION,
        use_map: bool = True,
    ) -> None:
        self.use_map = use_map
        self.renamed: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._place: dict[str, tuple[TensorFile, str]] = {}
        self._stack = ExitStack()
        try:
            for file in files.files:
                self._open(file, files, known, renames)
        except BaseException:
            self._stack.close()
            raise
        lost = sorted(set(files.owner or ()) - {name for _, name in self._place.values()})
        if lost:
            raise WeightsError(f"the shard index promises weights that its shards do not hold: {some(lost)}")

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def _open(
        self, file: Path, files: WeightFiles, known: Mapping[str, Tensor], renames: Sequence[tuple[str, str]]
    ) -> None:
        from ..core.pickles import open_plain

        source = self._stack.enter_context(open_plain(file))
        shapes = {name: entry.shape for name, entry in source.entries.items()}
        for stored in files.owned(file, shapes):
            name = present_name(stored, known, renames)
            if name != stored:
                self.renamed[stored] = name
            self.shapes[name] = shapes[stored]
            self._place[name] = (source, stored)

    def load(
        self, names: Iterable[str], *, dtype: torch.dtype | None, device: torch.device, check_finite: bool
    ) -> dict[str, Tensor]:
        """Return tensors on `device`, floating-point ones cast to `dtype`; those that fit as they are map the file.

        Raises WeightsError when `check_finite` and a result holds NaN or infinity.
        """
        check = FiniteCheck() if check_finite else None
        places = {name: self._place[name] for name in names}
        loaded = fetch(places, self.shapes, dtype=dtype, device=device, check=check, use_map=self.use_map)
        if check is not None:
            check.settle(loaded)
        return loaded


def fetch(
    places: Mapping[str, tuple[Any, str]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    check: FiniteCheck | None,
    use_map: bool = True,
) -> dict[str, Tensor]:
    """Return tensors by name on `device`, floating-point ones cast to `dtype`; those that fit as they are map the file.

    Args:
        places: name -> opened file, or dictionary of tensors, which is emptied, and name in it.
        check: looks at all values.
    """
    loaded: dict[str, Tensor] = {}
    views: dict[TensorFile, dict[str, str]] = {}
    casts: dict[TensorFile, dict[str, str]] = {}
    for name, (source, stored) in places.items():
        if isinstance(source, dict):
            value = source.pop(stored)
            loaded[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            if check is not None:
                check(loaded[name], [Part(name, 0, value.numel())])
            continue
        held = source.entries[stored].dtype
        wanted = dtype if dtype is not None and held.is_floating_point else held
        mapped = use_map and wanted == held and device.type == "cpu"
        view = source.view(stored) if mapped else None
        loaded[name] = torch.empty(shapes[name], dtype=wanted, device=device) if view is None else view
        (casts if view is None else views).setdefault(source, {})[stored] = name
    for source, present in casts.items():
        targets = {stored: loaded[name] for stored, name in present.items()}
        source.read(targets, check and check.named(present), use_map=use_map)
    for source, present in views.items() if check is not None else ():
        look = check.named(present)
        for block, parts in source.blocks(present, keep=True):
            look(block, parts)
    return loaded


class FiniteCheck:
    """Finds weights that hold NaN or infinity.

    Called with pieces of tensors in the type they are loaded in, it only looks at their sum, which is the fastest thing
    that carries both, and remembers the names of doubtful tensors; `settle` looks at these one by one.
    """

    def __init__(self) -> None:
        self.doubtful: dict[str, None] = {}

    def __call__(self, values: Tensor, parts: Sequence[Part]) -> None:
        """Take note of the tensors that `parts` of `values` belong to, unless all values are finite."""
        if values.is_floating_point() and values.dtype.itemsize > 1 and not math.isfinite(values.sum().item()):
            self.doubtful |= dict.fromkeys(part.name for part in parts)

    def named(self, present: Mapping[str, str]) -> Callable[[Tensor, Sequence[Part]], None]:
        """Return the check for a file that calls its tensors otherwise: stored name -> present name."""
        if all(stored == name for stored, name in present.items()):
            return self
        return lambda block, parts: self(block, [part._replace(name=present[part.name]) for part in parts])

    def settle(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise WeightsError for the first doubtful tensor that holds NaN or infinity."""
        for name in self.doubtful:
            least, greatest = (value.item() for value in tensors[name].aminmax())
            if math.isfinite(least) and math.isfinite(greatest):
                continue
            what = f"{'NaN' if math.isnan(least) else 'infinity'} in {tensors[name].dtype}"
            raise WeightsError(
                f"the weight {name!r} holds {what}: the file is damaged, its training diverged, "
                f"or the values need a wider type (torch.bfloat16 or torch.float32); check_finite=False loads it anyway"
            )


def present_name(stored: str, known: Mapping[str, Tensor], renames: Sequence[tuple[str, str]]) -> str:
    """Return the model's name for a name in a file: itself, or its old spelling brought up to date."""
    if stored in known:
        return stored
    name = stored
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name if name in known else stored


def load_into(
    model: nn.Module,
    files: WeightFiles,
    *,
    what: str,
    rebuild: Callable[[], nn.Module],
    renames: Sequence[tuple[str, str]] = LEGACY_ATTENTION,
    ignored: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    check_finite: bool = True,
    use_map: bool = True,
) -> LoadReport:
    """Give a model built without values the tensors of `files`.

    what: name of the load for messages. rebuild: builds the model with initial values, for weights that are allowed to
    be missing. ignored: patterns of names that may be in the files and are not wanted. Peak memory is that of the
    result and a few MB. Raises WeightsError as LoadReport.check and Checkpoint.load do.
    """
    known = {name: holder[leaf] for name, (holder, leaf) in tensor_places(model).items()}
    with Checkpoint(files, known=known, renames=renames, use_map=use_map) as checkpoint:
        return fill(
            model,
            checkpoint,
            what=what,
            rebuild=rebuild,
            ignored=ignored,
            dtype=dtype,
            device=device,
            strict=strict,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            check_finite=check_finite,
        )


class Opened(Protocol):
    """Tensors by present name, not read yet: `Checkpoint`, or a file seen through rules."""

    shapes: dict[str, tuple[int, ...]]
    renamed: dict[str, str]

    def load(
        self, names: Iterable[str], *, dtype: torch.dtype | None, device: torch.device, check_finite: bool
    ) -> dict[str, Tensor]:
        """Return tensors on `device`, floating-point ones cast to `dtype`."""


def fill(
    model: nn.Module,
    checkpoint: Opened,
    *,
    what: str,
    rebuild: Callable[[], nn.Module],
    ignored: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    check_finite: bool = True,
) -> LoadReport:
    """Give a model built without values the tensors of an opened checkpoint; see `load_into`."""
    device = device or torch.device("cpu")
    places = tensor_places(model)
    expected = {name: holder[leaf] for name, (holder, leaf) in places.items()}
    report = compare(expected, checkpoint.shapes, ignored)
    report.renamed = checkpoint.renamed
    report.check(what, strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes)
    fresh = {*report.missing_keys, *(name for name, _, _ in report.mismatched_keys)}
    chosen: dict[int, str] = {}
    for name, old in expected.items():
        # Of tied tensors the first one that is there counts.
        if id(old) not in chosen and (name in fresh or name in checkpoint.shapes):
            chosen[id(old)] = name
    stored = [name for name in chosen.values() if name not in fresh]
    loaded = checkpoint.load(stored, dtype=dtype, device=device, check_finite=check_finite)
    initial = rebuild().state_dict() if fresh else {}
    for name in fresh & set(chosen.values()):
        value = initial[name]
        loaded[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    new = {key: as_parameter(loaded[name], expected[name]) for key, name in chosen.items()}
    for name, (holder, leaf) in places.items():
        holder[leaf] = new[id(expected[name])]
    return report


def tensor_places(model: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Return where every parameter and saved buffer lives, in the order and under the names of the state dict.

    Raises ConfigError for a buffer that is not saved and that has no values, which no checkpoint would fill.
    """
    places: dict[str, tuple[dict[str, Any], str]] = {}
    hollow = []
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for holder in (module._parameters, module._buffers):
            for leaf, tensor in holder.items():
                if tensor is None:
                    continue
                if leaf not in module._non_persistent_buffers_set:
                    places[prefix + leaf] = holder, leaf
                elif tensor.is_meta:
                    hollow.append(prefix + leaf)
    if hollow:
        raise ConfigError(
            f"{type(model).__name__} leaves {some(hollow)} without values when it is built on the meta device; "
            f"create buffers that are not saved with device='cpu'"
        )
    return places


def compare(
    expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], ignored: Sequence[str]
) -> LoadReport:
    """Return which names are missing, unexpected or of another shape; tied tensors need to be there once."""
    present = {id(tensor) for name, tensor in expected.items() if name in shapes}
    report = LoadReport()
    report.missing_keys = [name for name, tensor in expected.items() if id(tensor) not in present]
    report.unexpected_keys = [
        name for name in shapes if name not in expected and not any(re.search(pattern, name) for pattern in ignored)
    ]
    report.mismatched_keys = [
        (name, shape, tuple(expected[name].shape))
        for name, shape in shapes.items()
        if name in expected and shape != tuple(expected[name].shape)
    ]
    return report


def as_parameter(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` as what `like` is: a parameter with the same `requires_grad`, or a plain buffer."""
    if isinstance(like, nn.Parameter):
        return nn.Parameter(value, requires_grad=like.requires_grad and value.is_floating_point())
    return value


# -- arguments ------------------------------------------------------------------------------------------------------


def resolve_dtype(torch_dtype: Any, dtype: Any) -> torch.dtype | None:
    """Return the asked type from the two spellings of the argument, each a torch.dtype, its name, "auto" or None.

    None for "auto" (keep what the file holds); float32, torch's default, where nothing is asked.
    Raises ConfigError for an unknown name, a type that cannot hold weights, or two different answers.
    """
    if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
        raise ConfigError(f"torch_dtype={torch_dtype} and dtype={dtype} contradict each other; they mean the same")
    asked = torch_dtype if torch_dtype is not None else dtype
    if asked == "auto":
        return None
    if asked is None:
        return torch.get_default_dtype()
    names = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    names |= {"fp16": torch.float16, "half": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if isinstance(asked, str):
        found = names.get(asked.removeprefix("torch."))
        if found is None:
            raise ConfigError(f"dtype is {asked!r}{did_you_mean(asked, [*names, 'auto'])}")
        return found
    if not isinstance(asked, torch.dtype) or not asked.is_floating_point:
        raise ConfigError(f"dtype is {asked!r}; valid: a floating torch.dtype or one of {', '.join([*names, 'auto'])}")
    return asked


def resolve_device(device_map: Any) -> torch.device:
    """Return the one device of a `device_map`: None, a device, its name, "auto"/"balanced", or {"": device}.

    Raises ConfigError for a map that spreads one model over several devices.
    """
    if isinstance(device_map, Mapping):
        places = set(map(str, device_map.values()))
        if len(places) != 1:
            raise ConfigError(f"device_map spreads one model over {', '.join(sorted(places))}; give a single device")
        device_map = next(iter(device_map.values()))
    if device_map is None:
        return torch.device("cpu")
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        accelerator = torch.accelerator.current_accelerator()
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device_map is {device_map!r}, no device of torch; valid: 'cpu', 'cuda', 'auto'") from error


# -- saving ---------------------------------------------------------------------------------------------------------


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


def shard_index(files: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return the text of a shard index: the total number of bytes, and the file of every tensor, names sorted."""
    total = sum(tensor.numel() * tensor.dtype.itemsize for shard in files.values() for tensor in shard.values())
    owner = {name: file for file, shard in files.items() for name in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": owner}, indent=2, sort_keys=True) + "\n"
