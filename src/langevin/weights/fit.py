"""Whether a weight file goes with a model, told from names and shapes: what is missing, foreign or of another size."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, LangevinError, nearest
from ..core.files import missing, read_json
from ..core.report import counted, some
from ..core.variants import members, pick, weights_in
from ..core.weights_io import Entry
from ..models.loading import LEGACY_ATTENTION, present_name
from ..nn.compiled import bare
from .checkpoint import Converted
from .contents import WEIGHT_SUFFIXES, look
from .dialects import lora
from .dialects.naming import Names, Shape
from .found import FAMILIES, family_by_context
from .known import COMPONENTS, probe_network
from .layouts.ldm import layer_names
from .single_file import SingleFile

CLASSES = {
    "UNet": "unet",
    "Autoencoder": "vae",
    "ControlNet": "controlnet",
    "T2IAdapter": "adapter",
    "CLIPTextModelWithProjection": "text_encoder_2",
    "CLIPTextModel": "text_encoder",
    "CLIPVision": "image_encoder",
}
"""Beginning of a class's name -> the component that it usually is."""
SHOWN = 8
"""Names that are printed of each kind."""
FEW = 0.1
"""The share of a model's names up to which names without a counterpart are taken for misspelt ones."""


@dataclass(frozen=True)
class Fit:
    """How a file goes with a model.

    Attributes:
        model: the model, for messages.
        fits: whether it can be loaded into it.
        missing: names of the model that the file lacks.
        unexpected: names in the file that the model lacks.
        nearest: name without a counterpart -> the nearest one of the other side, for the first few.
        mismatched: (name, shape in the file, shape in the model).
        notes: what else is to say, one sentence each.
    """

    model: str
    fits: bool
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    nearest: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold, names with the nearest one of the other side."""
        return {
            "model": self.model,
            "fits": self.fits,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": [[name, list(there), list(here)] for name, there, here in self.mismatched],
            "nearest": dict(self.nearest),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        sizes = [
            f"{name}: {list(there) or 'another size'} in the file, {list(here)} in the model"
            for name, there, here in self.mismatched
        ]
        lines = [f"{'Fits' if self.fits else 'Does not fit'} {self.model}.", *(f"  {note}" for note in self.notes)]
        for items, one, many in (
            (sizes, "tensor has another shape", "tensors have other shapes"),
            (self._shown(self.missing), "name of the model is missing", "names of the model are missing"),
            (self._shown(self.unexpected), "name in the file leads nowhere", "names in the file lead nowhere"),
        ):
            if items:
                more = [f"    ... and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
                lines += [f"  {counted(items, one, many)}:", *(f"    {item}" for item in items[:SHOWN]), *more]
        return "\n".join(lines)

    def _shown(self, names: Sequence[str]) -> list[str]:
        return [f"{name}, nearest: {self.nearest[name]}" if name in self.nearest else name for name in names]


@dataclass(frozen=True)
class Component:
    """A network by its names and shapes.

    Attributes:
        shapes: name -> shape.
        config: its configuration, empty where that is not known.
    """

    shapes: Mapping[str, Shape]
    config: Mapping[str, Any] = field(default_factory=dict)


Components = dict[str, Component]


def compare(path: Path, kind: str, family: str | None, model: Any) -> Fit:
    """Return how what stands at a path goes with a model.

    Args:
        kind, family: what it is, as an inspection tells.
        model: a pipeline, a network, or the path of a file or folder.
    Raises:
        InputError: for a model that is none of these, or that holds no networks.
    """
    what, target = target_of(model)
    try:
        if kind in ADAPTED:
            found = ADAPTED[kind](_entries(path), target, what)
        else:
            found = _networks(components_of(path, target), target, what)
    except LangevinError as error:
        return Fit(what, False, notes=(str(error),))
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError):
        return Fit(what, False, notes=("The file has tensors of shapes that make no sense under their names.",))
    theirs = family_by_context(target["unet"].shapes) if "unet" in target else None
    if found.fits or family is None or theirs is None or family == theirs:
        return found
    note = f"It is made for {FAMILIES.get(family, family)}, and the model is {FAMILIES.get(theirs, theirs)}."
    return replace(found, notes=(note, *found.notes))


# -- models ---------------------------------------------------------------------------------------------------------


def target_of(model: Any) -> tuple[str, Components]:
    """Return what a model is called, and its networks."""
    if isinstance(model, nn.Module):
        found = {component_name(type(model).__name__): _module(model)}
        return f"the {type(model).__name__}", found
    parts = getattr(model, "components", None)
    if isinstance(parts, Mapping):
        networks = {name: _module(part) for name, part in parts.items() if isinstance(part, nn.Module)}
        return f"the {type(model).__name__}", networks
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(f"model is a {type(model).__name__}; give a pipeline, a network, or the path of one.")
    path = Path(model).expanduser()
    if not path.exists():
        raise missing(path)
    found = components_of(path, {})
    if not found:
        raise InputError(f"{path} holds no networks to compare with.")
    return os.fspath(model), found


def component_name(cls: str) -> str:
    """Return the component that a class usually is."""
    return next((name for start, name in CLASSES.items() if cls.startswith(start)), cls)


def _module(module: nn.Module) -> Component:
    module = bare(module)
    config = getattr(module, "config", {})
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    return Component(shapes, config if isinstance(config, Mapping) else {})


def components_of(path: Path, like: Components) -> Components:
    """Return the networks in a file or folder; `like` has configurations where the path has none."""
    if path.is_file():
        return _of_file(path, like)
    if (path / "model_index.json").is_file():
        listed = read_json(path / "model_index.json")
        inside = (folder for folder in sorted(path.iterdir()) if folder.is_dir() and folder.name in listed)
        return {folder.name: found for folder in inside if (found := _of_folder(folder)) is not None}
    found = _of_folder(path)
    if found is not None:
        name = found.config.get("_class_name") or next(iter(found.config.get("architectures") or ()), "")
        return {component_name(name) if name else _guess(_entries(path)): found}
    loose = [file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES]
    return _of_file(loose[0], like) if len(loose) == 1 else {}


def _guess(entries: Mapping[str, Entry]) -> str:
    found = probe_network(entries, {})
    return COMPONENTS.get(found.kind, found.kind) if found else "model"


def _of_folder(path: Path) -> Component | None:
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    entries = _entries(path)
    return Component({name: tuple(entry.shape) for name, entry in entries.items()}, config) if entries else None


def _entries(path: Path) -> dict[str, Entry]:
    """Return the tensors in a file, or in the weight files of a folder."""
    if path.is_file():
        return dict(look(path).entries)
    names = [file.name for file in path.iterdir()]
    found = weights_in(names)
    files = members(names, pick(found, None, None) or next(iter(found), None))
    files = files or [name for name in names if name.endswith(WEIGHT_SUFFIXES)][:1]
    return {
        name: entry for file in files if not file.endswith(".json") for name, entry in _entries(path / file).items()
    }


def _of_file(path: Path, like: Components) -> Components:
    """Return the networks in a single file, under the names that this library gives their tensors."""
    entries = _entries(path)
    if probe_network(entries, {}) is not None:
        shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
        return {_guess(entries): Component(shapes)}
    found: Components = {}
    with SingleFile(path) as file:
        for name, held in file.places.items():
            config = _options(file, name, like)
            without = held.unneeded(config)
            names = [each for each in held.names if each not in without]
            converted = Converted(file.source, held.layout.rules(config), names=names, prefix=held.prefix)
            found[name] = Component(converted.shapes, config)
    return found


def _options(file: SingleFile, name: str, like: Components) -> Mapping[str, Any]:
    """Return the options that shapes tell, or where they do not, those of the model to compare with."""
    try:
        return file.config(name)
    except ConfigError:
        if name in like and like[name].config:
            return like[name].config
        raise


# -- networks -------------------------------------------------------------------------------------------------------


def _networks(given: Components, target: Components, what: str) -> Fit:
    shared = [name for name in given if name in target]
    if not shared and "unet" in target and set(given) & {"controlnet"}:
        return _beside(given["controlnet"], target["unet"], what)
    if not shared:
        held, has = some(list(given)) or "no network", some(list(target)) or "none"
        return Fit(what, False, notes=(f"The file holds {held}; the model has {has}.",))
    lost: list[str] = []
    foreign: list[str] = []
    other: list[tuple[str, Shape, Shape]] = []
    for name in shared:
        rows = _shapes(name if len(target) > 1 else "", given[name].shapes, target[name].shapes)
        lost, foreign, other = lost + rows[0], foreign + rows[1], other + rows[2]
    notes = [f"The model's {name} is not in the file." for name in target if name not in given and len(given) > 1]
    notes += [f"Compared: {some(shared)}."] if len(target) > 1 else []
    near = (
        _neighbours(lost, foreign) if len(lost) + len(foreign) < FEW * sum(len(given[n].shapes) for n in shared) else {}
    )
    return Fit(what, not (lost or foreign or other), tuple(lost), tuple(foreign), tuple(other), near, tuple(notes))


def _neighbours(lost: Sequence[str], foreign: Sequence[str]) -> dict[str, str]:
    """Return the first names without a counterpart -> the nearest one of the other side."""
    pairs = [
        (name, nearest(name, others)) for names, others in ((lost, foreign), (foreign, lost)) for name in names[:SHOWN]
    ]
    return {name: near for name, near in pairs if near is not None}


def _shapes(
    name: str, there: Mapping[str, Shape], here: Mapping[str, Shape]
) -> tuple[list[str], list[str], list[tuple[str, Shape, Shape]]]:
    """Return which names are missing, foreign, and of another shape, each with the component before it."""
    mark = f"{name}." if name else ""
    known = {_plain(key): shape for key, shape in here.items() if not key.endswith("position_ids")}
    found = {_plain(key): shape for key, shape in there.items() if not key.endswith("position_ids")}
    if "text" not in name:
        found = {present_name(key, known, LEGACY_ATTENTION): shape for key, shape in found.items()}
    lost = [mark + key for key in known if key not in found]
    foreign = [mark + key for key in found if key not in known]
    both = [key for key in found if key in known and differ(found[key], known[key])]
    return lost, foreign, [(mark + key, found[key], known[key]) for key in both]


def differ(one: Shape, other: Shape) -> bool:
    """Tell whether two shapes differ; a linear layer and a convolution of one pixel are the same in old files."""
    return tuple(side for side in one if side != 1) != tuple(side for side in other if side != 1)


def _plain(name: str) -> str:
    """Return a name of a text encoder's tensor without the part that comes and goes between versions."""
    return name.removeprefix("text_model.")


def _beside(control: Component, unet: Component, what: str) -> Fit:
    """Return whether a ControlNet is made for a UNet: the part that they share has the same shapes."""
    both = [key for key in control.shapes if key in unet.shapes]
    other = tuple((k, control.shapes[k], unet.shapes[k]) for k in both if control.shapes[k] != unet.shapes[k])
    note = f"{len(both)} tensors of the ControlNet have the UNet's names and were compared."
    return Fit(what, bool(both) and not other, mismatched=other, notes=(note,))


# -- adapters -------------------------------------------------------------------------------------------------------


def names_of(component: Component) -> Names:
    """Return the layers of a network that adapters can change."""
    weights = {key.removesuffix(".weight"): shape for key, shape in component.shapes.items() if key.endswith(".weight")}
    layers = {path: shape for path, shape in weights.items() if len(shape) > 1 and not path.endswith("embedding")}
    return Names(layers, partial(layer_names, component.config, layers))


def _lora(entries: Mapping[str, Entry], target: Components, what: str) -> Fit:
    """Return whether every layer of an adapter finds its layer; scalars have no values here, and need none."""
    state: dict[str, Tensor] = {
        name: torch.ones(entry.shape) if len(entry.shape) == 0 else torch.empty(entry.shape, device="meta")
        for name, entry in entries.items()
    }
    targets = {name: names_of(part) for name, part in target.items()}
    reading = lora.read(state, targets, strict=False)
    report = reading.report
    layers = {name: len(found) for name, found in reading.adapter.items()}
    notes = [f"It changes {some([f'{n} layers of the {name}' for name, n in layers.items()])}."] if layers else []
    ignored = Counter(report.ignored.values())
    notes += [f"{n} tensors have no effect: {reason}." for reason, n in ignored.items()]
    near = [(name, lora.nearest_name(name, targets)) for name in report.unexpected_keys[:SHOWN]]
    if len(report.unexpected_keys) > FEW * len(state):
        near = near[:1]
    wrong = report.unexpected_keys or report.missing_keys or report.mismatched_keys
    return Fit(
        what,
        not wrong and bool(layers),
        tuple(report.missing_keys),
        tuple(report.unexpected_keys),
        tuple((name.split(" (")[0], (), shape) for name, _, shape in report.mismatched_keys),
        {name: found for name, found in near if found is not None},
        tuple(notes),
    )


def _words(entries: Mapping[str, Entry], target: Components, what: str) -> Fit:
    """Return whether a learned word is as wide as the words of a text encoder."""
    tables = {
        name: part.shapes[key]
        for name, part in target.items()
        for key in part.shapes
        if key.endswith("token_embedding.weight")
    }
    if not tables:
        return Fit(what, False, notes=(f"The model has no text encoder; it has {some(list(target))}.",))
    widths = {shape[1]: name for name, shape in tables.items()}
    other = tuple(
        (n, tuple(e.shape), next(iter(tables.values()))) for n, e in entries.items() if e.shape[-1] not in widths
    )
    into = sorted({widths[e.shape[-1]] for e in entries.values() if e.shape[-1] in widths})
    lacking = sorted(set(tables) - set(into))
    notes = [f"It is for {some(into)}."] if into else []
    notes += [f"It has no vectors for {some(lacking)}."] if lacking and into else []
    return Fit(what, not other and not lacking, mismatched=other, notes=tuple(notes))


def _tokens(entries: Mapping[str, Entry], target: Components, what: str) -> Fit:
    """Return whether the keys of an IP-Adapter have the sizes of a UNet's cross-attentions."""
    if "unet" not in target:
        return Fit(what, False, notes=(f"The model has no UNet; it has {some(list(target))}.",))
    theirs = Counter(tuple(e.shape) for name, e in entries.items() if name.endswith("to_k_ip.weight"))
    ours = Counter(shape for name, shape in target["unet"].shapes.items() if name.endswith("attn2.to_k.weight"))
    if theirs == ours:
        return Fit(what, True, notes=(f"Its {theirs.total()} keys have the sizes of the UNet's.",))
    told = [" and ".join(f"{n} of {list(shape)}" for shape, n in found.items()) for found in (theirs, ours)]
    return Fit(what, False, notes=(f"The file has keys for cross-attentions: {told[0]}; the UNet has {told[1]}.",))


ADAPTED: Mapping[str, Callable[[Mapping[str, Entry], Components, str], Fit]] = {
    "lora": _lora,
    "textual inversion": _words,
    "ip-adapter": _tokens,
}
"""Kind -> how it is compared."""
