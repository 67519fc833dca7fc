"""What a folder of a pipeline, a model or an adapter is, from its configurations and the headers of its files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import LangevinError, WeightsError
from ..core.files import read_json
from ..core.report import some
from ..core.variants import Weights, is_part, members, pick, weights_in
from ..core.weights_io import Entry
from ..models.weight_files import WeightFiles
from ..registry import ROWS
from .contents import WEIGHT_SUFFIXES, Contents, amount, look
from .inspection import Inspection, described, of_file, present
from .known import CLASSES


def of_folder(path: Path) -> Inspection:
    """Return what a folder is: told by the file that marks it, or else by the weights in it."""
    for name, answer in FOLDERS.items():
        if (path / name).is_file():
            return answer(path)
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    if weights_in(names):
        return _network(path)
    loose = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    if len(loose) == 1:
        return of_file(path / loose[0])
    if loose:
        parts = {name: of_file(path / name) for name in loose}
        return Inspection("", "folder of weight files", size=_sum(parts, "size"), parts=parts)
    inside = [file.name for file in path.iterdir() if file.is_dir()]
    hint = (
        f"It holds {some(sorted([*names, *(f'{name}/' for name in inside)]))}." if names or inside else "It is empty."
    )
    return Inspection("", "no weights", damage=(f"The folder holds no weights. {hint}",))


def _sum(parts: Mapping[str, Inspection], name: str) -> int:
    return sum(getattr(part, name) for part in parts.values())


def _config(path: Path, damage: list[str]) -> dict[str, Any]:
    """Return a configuration; what cannot be read is damage."""
    try:
        return read_json(path) if path.is_file() else {}
    except LangevinError as error:
        damage.append(str(error).replace(os.fspath(path), path.name))
        return {}


def _network(path: Path) -> Inspection:
    """Return what a folder with one network is: its class, its variants and its shards."""
    damage: list[str] = []
    config = _config(path / "config.json", damage)
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    found = weights_in(names)
    sets = {weights: members(names, weights) for weights in sorted(found, key=lambda w: (w.variant or "", w.kind))}
    listed = [_variant(path, weights, files) for weights, files in sets.items()]
    chosen = pick(found, None, None) or next(iter(sets), None)
    if chosen is None:
        damage.append(f"The folder holds no weights; it holds {some(names) or 'nothing'}.")
        return Inspection("", "no weights", details=present({"class": config.get("_class_name")}), damage=tuple(damage))
    for weights, files in sets.items():
        damage += _absent_shards(path, files) if weights == chosen or any(map(is_part, files)) else []
    shards = [name for name in sets[chosen] if not name.endswith(".json")]
    contents = _united(path, shards, damage)
    model = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    answer = described(path, contents)
    details = {
        "class": model or answer.details.get("class"),
        "variants": listed,
        "shards": len(shards) if len(shards) > 1 else None,
        **{name: value for name, value in answer.details.items() if name != "class"},
    }
    details = {name: value for name, value in details.items() if value is not None}
    size = sum((path / name).stat().st_size for files in sets.values() for name in files)
    kind = answer.kind if model is None or answer.kind != "unknown" else CLASSES.get(model, model)
    return replace(answer, kind=kind, details=details, size=size)


def _variant(path: Path, weights: Weights, files: Sequence[str]) -> str:
    size = sum((path / name).stat().st_size for name in files)
    return f"{weights.variant or 'plain'} ({weights.kind}, {amount(size)}B)"


def _absent_shards(path: Path, files: Iterable[str]) -> list[str]:
    """Return a sentence when an index names shards that are not there, or leads elsewhere."""
    damage = []
    for name in files:
        if name.endswith(".json"):
            try:
                WeightFiles.from_index(path / name)
            except WeightsError as error:
                damage.append(f"{str(error).replace(os.fspath(path) + os.sep, '')}.")
    return damage


def _united(path: Path, names: Sequence[str], damage: list[str]) -> Contents:
    """Return what the files of one network hold together."""
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    size = 0
    kind = None
    for name in names:
        contents = look(path / name)
        damage += [f"{name}: {line}" if len(names) > 1 else line for line in contents.damage]
        entries |= contents.entries
        metadata |= contents.metadata
        size, kind = size + contents.size, contents.format or kind
    return Contents(kind, size, entries, metadata, damage=tuple(damage))


def _scheduler(path: Path) -> Inspection:
    damage: list[str] = []
    config = _config(path / "scheduler_config.json", damage)
    details = {
        "class": config.get("_class_name"),
        "predicts": config.get("prediction_type", "epsilon"),
        "zero terminal SNR": config.get("rescale_betas_zero_snr") or None,
        "training steps": config.get("num_train_timesteps"),
    }
    return Inspection("", "scheduler", details=present(details), damage=tuple(damage))


def _pipeline(path: Path) -> Inspection:
    """Return what a pipeline's folder is: its class, its components and the variants of their weights."""
    damage: list[str] = []
    index = _config(path / "model_index.json", damage)
    name = index.get("_class_name")
    row = next((row for row in ROWS if row.name == name), None)
    pairs = {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, list) and len(v) == 2}
    listed = {k: v for k, v in pairs.items() if None not in v}
    parts, doubts = {}, []
    for component, (library, cls) in listed.items():
        if not component.isidentifier():
            damage.append(f"model_index.json lists {component!r}, which is no name of a component.")
        elif not (path / component).is_dir():
            damage.append(f"The component {component!r} ({cls}) has no folder.")
        else:
            parts[component] = _component(path / component, str(cls))
        if library not in ("diffusers", "transformers", "stable_diffusion", "langevin"):
            doubts.append(f"{component} is a {cls} of {library!r}, which is not loaded; build it and pass it.")
    if row is None:
        doubts.append(f"This library has no pipeline {name!r}.")
    unet, schedule = parts.get("unet"), parts.get("scheduler")
    size = _config(path / "unet" / "config.json", []).get("sample_size") if unet else None
    factor = parts["vae"].details.get("pixels per latent", 8) if "vae" in parts else 1
    details = {
        "class": name,
        "task": row.task if row else None,
        "predicts": schedule.details.get("predicts") if schedule else None,
        "zero terminal SNR": schedule.details.get("zero terminal SNR") if schedule else None,
        "resolution": size * factor if isinstance(size, int) else None,
        "without": [key for key in pairs if key not in listed],
    }
    types: Counter[str] = Counter()
    for part in parts.values():
        types.update(part.dtypes)
    return Inspection(
        "",
        "pipeline folder",
        family=unet.family if unet else None,
        size=_sum(parts, "size"),
        tensors=_sum(parts, "tensors"),
        parameters=_sum(parts, "parameters"),
        dtypes=dict(types.most_common()),
        details=present(details),
        doubts=tuple(doubts),
        damage=tuple(damage),
        parts=parts,
    )


def _component(path: Path, cls: str) -> Inspection:
    """Return what a component's folder is; parts without weights are known by their class alone."""
    names = [file.name for file in path.iterdir()]
    if "scheduler_config.json" in names:
        return replace(_scheduler(path), path=os.fspath(path))
    if "config.json" in names or weights_in(names):
        return replace(_network(path), path=os.fspath(path))
    kind = "tokenizer" if any("token" in name or "vocab" in name for name in names) else "settings"
    damage = () if any(name.endswith((".json", ".txt", ".model")) for name in names) else ("The folder is empty.",)
    return Inspection(os.fspath(path), kind, details={"class": cls}, damage=damage)


FOLDERS: Mapping[str, Callable[[Path], Inspection]] = {
    "model_index.json": _pipeline,
    "scheduler_config.json": _scheduler,
    "config.json": _network,
}
"""File that tells what a folder is -> what answers for it."""
