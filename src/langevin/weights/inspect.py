"""`inspect`: what a weight file or a model's folder is, from headers and configurations alone.

No tensor is read, no code is run, nothing is loaded and the network is not asked. Each way of recognising a file is a
probe (see `found`); the first that knows the file answers.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from ..core.errors import LangevinError, WeightsError
from ..core.files import missing, read_json
from ..core.report import some
from ..core.variants import Weights, is_part, members, pick, weights_in
from ..core.weights_io import Entry
from ..models.weight_files import WeightFiles
from ..registry import ROWS
from .contents import SUFFIXES, WEIGHT_SUFFIXES, Contents, amount, look
from .dialects import custom_diffusion, ip_adapter, textual_inversion
from .dialects import probe as adapters
from .fit import Fit, compare
from .found import Found, Probe
from .known import probe_network, probe_original

PROBES: Sequence[Probe] = (
    ip_adapter.probe,
    custom_diffusion.probe,
    adapters.probe,
    textual_inversion.probe,
    probe_original,
    probe_network,
)
"""Asked in this order; what is small and special comes first."""
CALLED: Mapping[Probe, str] = {
    ip_adapter.probe: "an IP-Adapter",
    custom_diffusion.probe: "weights of Custom Diffusion",
    adapters.probe: "a LoRA",
    textual_inversion.probe: "a textual inversion",
}

METADATA = {
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.date": "date",
    "modelspec.license": "license",
    "modelspec.architecture": "architecture",
    "modelspec.trigger_phrase": "trigger words",
    "modelspec.resolution": "trained at",
    "modelspec.prediction_type": "predicts",
    "ss_output_name": "name",
    "ss_sd_model_name": "trained on",
    "ss_base_model_version": "base model",
    "ss_network_module": "network",
    "ss_network_args": "options",
    "ss_resolution": "trained at",
    "ss_num_train_images": "pictures",
    "ss_steps": "steps",
    "ss_clip_skip": "clip skip",
    "global_step": "steps",
    "epoch": "epochs",
    "sd_checkpoint_name": "trained on",
    "step": "steps",
}
"""Metadata that are printed, by what they are called in print."""
TAGS, SHOWN = "ss_tag_frequency", 8
CLASSES = {
    "AutoencoderKL": "vae",
    "AutoencoderTiny": "vae",
    "CLIPTextModel": "text encoder",
    "CLIPTextModelWithProjection": "text encoder",
    "CLIPVisionModelWithProjection": "image encoder",
    "ControlNetModel": "controlnet",
    "StableDiffusionSafetyChecker": "safety checker",
    "T2IAdapter": "t2i-adapter",
    "UNet2DConditionModel": "unet",
    "UNet2DModel": "unet",
}


@dataclass(frozen=True)
class Inspection:
    """What a weight file or folder is.

    Attributes:
        path: as it was given.
        kind: "checkpoint", "unet", "vae", "lora", "textual inversion", "pipeline folder" ..., or "unknown".
        family: short name of the model family, "sd1", "sd2", "sdxl" ..., or None where nothing tells.
        dialect: how the names are spelt, or None.
        format: how the file is written, or None for a folder and for what holds no weights.
        size: bytes on disk.
        tensors, parameters: how many.
        dtypes: name of a type -> number of parameters that have it.
        details: further facts by name.
        metadata: the strings in the file.
        reasons: what the answer rests on.
        doubts: what the file does not settle.
        damage: what is wrong with it; empty when nothing was found.
        parts: name -> the same for the components of a folder.
        fit: how it goes with the given model, or None.
    """

    path: str
    kind: str
    family: str | None = None
    dialect: str | None = None
    format: str | None = None
    size: int = 0
    tensors: int = 0
    parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    parts: Mapping[str, Inspection] = field(default_factory=dict)
    fit: Fit | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong: no damage, here and in the parts, and a fit where one was asked for."""
        return not self.damage and (self.fit is None or self.fit.fits) and all(p.ok for p in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("parts", "fit")}
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        own |= {name: dict(value) for name, value in own.items() if isinstance(value, Mapping)}
        own["parts"] = {name: part.as_dict() for name, part in self.parts.items()}
        own["fit"] = None if self.fit is None else self.fit.as_dict()
        return own | {"ok": self.ok}

    def __str__(self) -> str:
        from .printing import print_out

        return print_out(self)


def inspect(path: str | os.PathLike, *, model: Any = None) -> Inspection:
    """Say what a weight file or a model's folder is: family, kind, dialect, types, rank, damage and more.

    Reads headers and configurations alone. Damage is part of the answer and not an error.

    Args:
        path: a file (.safetensors, .ckpt, .bin, .pt ...), or a folder of a pipeline, model or adapter.
        model: a pipeline or network, or the path of one, for which the answer also says whether `path` fits it.
    Raises:
        InputError: when there is nothing at `path`.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise missing(place)
    found = _folder(place) if place.is_dir() else _file(place)
    found = replace(found, path=os.fspath(path))
    return found if model is None else replace(found, fit=compare(place, found.kind, found.family, model))


# -- files ----------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Inspection:
    contents = look(path)
    return _described(path, contents)


def recognise(contents: Contents) -> tuple[Found | None, list[str]]:
    """Return what the first probe that knows a file's names says of it, and the probes that shapes put at a loss."""
    lost = []
    for probe in PROBES if contents.entries else ():
        try:
            found = probe(contents.entries, contents.metadata)
        except (LangevinError, LookupError, ValueError, TypeError, ArithmeticError):
            what = CALLED.get(probe, "a network")
            lost.append(f"Some names are as in {what}, with tensors of shapes that make no sense there.")
            continue
        if found is not None:
            return found, lost
    return None, lost


def _described(path: Path, contents: Contents) -> Inspection:
    """Return the answer for a file, or the files of one network, from what a probe found."""
    found, lost = recognise(contents)
    entries, details = contents.entries, dict(found.details) if found else {}
    doubts = (*lost, *details.pop("doubts", ()))
    incomplete = details.pop("incomplete", ())
    damage = (*contents.damage, *((f"It is incomplete: {some(incomplete, '; ')}.",) if incomplete else ()))
    if found is None:
        found = Found(_unknown(contents))
        if entries:
            details["names"] = some([f"{name}.* ({n})" for name, n in _beginnings(entries)])
            doubts = (*doubts, "Nothing here knows names like these.")
    if found.kind == "textual inversion" and not details.get("words"):
        details["words"] = [f"{path.stem} (the file's name)"]
    if contents.beside:
        others = {name: what for name, what in contents.beside.items() if name and name not in METADATA}
        details["beside the weights"] = [f"{name}: {what}" for name, what in others.items()]
    types: Counter[str] = Counter()
    for entry in entries.values():
        types[str(entry.dtype).removeprefix("torch.")] += prod(entry.shape)
    return Inspection(
        path=os.fspath(path),
        kind=found.kind,
        family=found.family,
        dialect=found.dialect,
        format=contents.format,
        size=contents.size,
        tensors=len(entries),
        parameters=sum(types.values()),
        dtypes=dict(types.most_common()),
        details={name: value for name, value in details.items() if value not in (None, [], {}, "")},
        metadata=dict(contents.metadata),
        reasons=tuple(map(_as_sentence, found.reasons)),
        doubts=doubts,
        damage=damage,
    )


def _as_sentence(text: str) -> str:
    """Return a text with a capital, unless it begins with a name from the file, and with a full stop."""
    first = text.split(" ")[0]
    start = first if any(sign in first for sign in "._`/") else first.capitalize() if first.islower() else first
    return f"{start}{text.removeprefix(first).rstrip('.')}."


def _unknown(contents: Contents) -> str:
    if contents.format is None:
        return "no weights"
    if contents.entries:
        return "unknown"
    return "empty" if contents.format in SUFFIXES else f"{contents.format} file"


def _beginnings(names: Iterable[str]) -> list[tuple[str, int]]:
    return Counter(name.split(".")[0] for name in names).most_common()


# -- folders --------------------------------------------------------------------------------------------------------


def _folder(path: Path) -> Inspection:
    for name, answer in FOLDERS.items():
        if (path / name).is_file():
            return answer(path)
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    if weights_in(names):
        return _network(path)
    loose = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    if len(loose) == 1:
        return _file(path / loose[0])
    if loose:
        parts = {name: _file(path / name) for name in loose}
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
        return Inspection("", "no weights", details={"class": config.get("_class_name")}, damage=tuple(damage))
    for weights, files in sets.items():
        damage += _absent_shards(path, files) if weights == chosen or any(map(is_part, files)) else []
    shards = [name for name in sets[chosen] if not name.endswith(".json")]
    contents = _united(path, shards, damage)
    model = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    answer = _described(path, contents)
    details = {
        "class": model,
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
    return Inspection("", "scheduler", details=_present(details), damage=tuple(damage))


def _present(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if value not in (None, [], {}, "")}


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
        details=_present(details),
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


def top_tags(metadata: Mapping[str, str]) -> list[str]:
    """Return the most frequent words of the captions that an adapter was trained on, as its metadata counts them."""
    total: Counter[str] = Counter()
    try:
        for counts in json.loads(metadata.get(TAGS, "{}")).values():
            total.update({str(tag).strip(): int(n) for tag, n in counts.items()})
    except (ValueError, AttributeError, TypeError):
        return []
    return [f"{tag} ({n})" for tag, n in total.most_common(SHOWN)]
