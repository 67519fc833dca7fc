"""LoRA and its relatives on the networks of a pipeline: loaded, weighted, combined, fused, removed and saved.

Everything here takes the networks by the name of their component, so that a pipeline and a single network share it.
The mathematics is in `deltas`, what a network remembers in `stack`, the names in files in `weights.dialects`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from ..core.errors import ConfigError, InputError, check_choice, check_count, check_known
from ..core.logging import get_logger
from ..core.report import LoadReport, counted, some
from ..nn.compiled import bare
from ..weights.dialects import lora as dialects
from ..weights.dialects.naming import Names
from ..weights.dialects.parts import Adapter, Parts
from ..weights.dialects.words import DIALECTS
from ..weights.dialects.writing import written
from .files import Source, write_tensors
from .guest import own_modules
from .layers import kind, weight_shape
from .stack import Stack, copied
from .weighing import Given, weight_in

logger = get_logger(__name__)
Models = Mapping[str, nn.Module]
"""Component -> network."""


@dataclass
class Facts:
    """What is remembered of a loaded file beside its tensors, to save it as it was.

    Attributes:
        metadata: the strings in the file.
        dialect: how it was spelt.
        dtypes: path -> the type of the tensors in the file.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "diffusers"
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)


_reserved: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Network -> the rank that adapters loaded from now on make room for."""
_told: WeakSet[nn.Module] = WeakSet()
"""Networks of which it was said that they have no adapter to scale."""


def names_of(model: nn.Module) -> Names:
    """Return the layers of a network that adapters can change, under every name that files have for them."""
    shapes = {path: weight_shape(layer) for path, layer in own_modules(bare(model)) if kind(layer) is not None}
    shapes = {path: shape for path, shape in shapes.items() if shape}
    return Names(shapes, partial(original_names, bare(model), shapes))


def original_names(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Return the names that the layers of a conditional UNet have in its authors' layout -> path."""
    from ..weights.layouts.ldm import layer_names

    return layer_names(getattr(model, "config", None), paths)


# Loading -------------------------------------------------------------------------------------------------------------


def load(models: Models, source: Source, *, name: str | None = None, hotswap: bool = False) -> LoadReport:
    """Attach an adapter to networks and make it the only active one.

    Args:
        source: its tensors; see `files.open_source`.
        name: of the adapter, "default_N" by default.
        hotswap: put it in the place of the adapter of that name, or of the only one there is.

    Raises:
        ConfigError: the name is taken, or with `hotswap` is that of no adapter.
        WeightsError: tensors that find no layer or do not fit; nothing is attached then.
    """
    targets = {component: names_of(model) for component, model in models.items()}
    reading = dialects.read(source.state, targets, metadata=source.metadata, what=source.what)
    report = reading.report
    if report.ignored:
        reasons = some(sorted(set(report.ignored.values())), "; ")
        number = counted(list(report.ignored), "tensor is", "tensors are")
        logger.warning("%s: %s left out: %s.", source.what, number, reasons)
    name = _name_for(models, name, hotswap=hotswap)
    _put(models, name, reading.adapter)
    if not hotswap:
        activate(models, {name: None})
    for component, layers in reading.adapter.items():
        dtypes = {path: next(iter(parts.tensors.values())).dtype for path, parts in layers.items()}
        Stack(models[component]).record(name).origin = Facts(reading.metadata, reading.dialect, dtypes)
    return report


def _name_for(models: Models, name: str | None, *, hotswap: bool) -> str:
    """Return the name of the adapter to load, or say why it cannot have it."""
    present = all_names(models)
    if hotswap:
        if name is None and len(present) == 1:
            return present[0]
        if name not in present:
            what = "no adapter is loaded" if not present else f"loaded are: {some(present)}"
            raise ConfigError(
                f"hotswap=True puts an adapter in the place of another; adapter_name is {name!r}, {what}."
            )
        return str(name)
    if name is None:
        return free_name(present)
    if not isinstance(name, str) or not name:
        raise InputError(f"adapter_name is {name!r}; it must be a text.")
    if name in present:
        raise ConfigError(
            f"The adapter name {name!r} is in use; choose another, delete that adapter by `delete_adapters`, or "
            "exchange it with hotswap=True."
        )
    return name


def free_name(present: Iterable[str], stem: str = "default") -> str:
    """Return "default_N", where N is how many adapters there are, or the next number that is free."""
    taken = set(present)
    numbers = range(len(taken), 2 * len(taken) + 1)
    return next(name for name in (f"{stem}_{k}" for k in numbers) if name not in taken)


def _put(models: Models, name: str, adapter: Adapter) -> None:
    """Attach an adapter to every network that it has layers for, in the place of one of its name, or to none."""
    before = {component: copied(own.parts(name)) for component, own in stacks(models).items() if name in own.names}
    done: list[str] = []
    try:
        for component, layers in adapter.items():
            own = Stack(models[component])
            if component in before:
                own.swap(name, layers)
            else:
                own.add(name, layers, target_rank=_reserved.get(own.model))
            done.append(component)
    except BaseException:
        for component in done:
            own = Stack(models[component])
            own.swap(name, before[component]) if component in before else own.remove(name)
        raise
    for component in before:
        if component not in adapter:
            Stack(models[component]).remove(name)


def reserve(models: Models, rank: int, *, check_compiled: str = "error") -> None:
    """Make room for adapters up to a rank in those that are loaded from now on, so that they can be exchanged.

    Raises:
        ConfigError: an adapter is loaded already and `check_compiled` is "error"; "warn" says so, "ignore" does not.
    """
    check_choice("check_compiled", check_compiled, ("error", "warn", "ignore"))
    check_count("target_rank", rank)
    present = all_names(models)
    if present:
        text = f"{some(present)} was loaded before room was made; call enable_lora_hotswap before the first adapter"
        if check_compiled == "error":
            raise ConfigError(f"{text}, or pass check_compiled='ignore'.")
        if check_compiled == "warn":
            logger.warning("%s.", text)
    for model in models.values():
        _reserved[bare(model)] = rank


# What there is -------------------------------------------------------------------------------------------------------


def stacks(models: Models) -> dict[str, Stack]:
    """Return the adapters of the networks that have any, by component."""
    return {component: own for component, model in models.items() if (own := Stack(model)).names}


def all_names(models: Models) -> list[str]:
    """Return the adapters of all networks, in the order in which they were loaded."""
    return list(dict.fromkeys(name for own in stacks(models).values() for name in own.names))


def active_names(models: Models) -> list[str]:
    """Return the active adapters of all networks."""
    return list(dict.fromkeys(name for own in stacks(models).values() for name in own.active))


def fused_names(models: Models) -> list[str]:
    """Return the adapters that are part of the weights."""
    return list(dict.fromkeys(name for own in stacks(models).values() for name in own.fused))


def checked(models: Models, names: str | Sequence[str]) -> list[str]:
    """Return the names of adapters as a list, or say which of them are not loaded."""
    names = [names] if isinstance(names, str) else list(names)
    present = all_names(models)
    if not present:
        raise ConfigError(f"No adapter is loaded, and {some([repr(name) for name in names])} cannot be one.")
    check_known("The adapters that are loaded: this network or pipeline", names, present)
    return names


# Weights -------------------------------------------------------------------------------------------------------------


def set_adapters(models: Models, names: str | Sequence[str], weights: Given | Sequence[Given] = None) -> None:
    """Make adapters the active ones, with weights.

    Args:
        names: one or several.
        weights: one for all, or one for each: a number, or numbers by component and block, see `weighing.weight_in`;
            None is 1.

    Raises:
        ConfigError: no such adapter, component or block.
        InputError: another number of weights, or what is no number.
    """
    names = checked(models, names)
    several = isinstance(weights, Sequence) and not isinstance(weights, str)
    row: list[Any] = list(weights) if several else [weights] * len(names)  # type: ignore[arg-type]
    if len(row) != len(names):
        raise InputError(f"There are {len(row)} weights for {len(names)} adapters; give one, or one for each.")
    activate(models, dict(zip(names, row, strict=True)))


def activate(models: Models, weights: Mapping[str, Given]) -> None:
    """Make exactly these adapters active in every network, or change nothing."""
    plans = {
        component: {
            name: weight_in(component, own.model, name, weight) for name, weight in weights.items() if name in own.names
        }
        for component, own in stacks(models).items()
    }
    for name, weight in weights.items():
        if isinstance(weight, Mapping):
            check_known(f"The weight of the adapter {name!r} by component", weight, models)
    for component, plan in plans.items():
        Stack(models[component]).set(plan)


@contextmanager
def scaled(models: Models, factor: float | None) -> Iterator[None]:
    """Multiply the weights of all active adapters for the duration of a run; None is 1.

    A factor without an adapter has no effect, which is said once.

    Raises:
        ConfigError: another run with another factor is going on in the same network.
    """
    found = stacks(models)
    if factor not in (None, 1) and not any(own.active or own.fused for own in found.values()):
        networks = {bare(model) for model in models.values()}
        if not networks <= set(_told):
            logger.warning("The adapters' scale of %s has no effect: no adapter is loaded.", factor)
        _told.update(networks)
    with ExitStack() as entered:
        for own in found.values():
            entered.enter_context(own.scaled(1.0 if factor is None else factor))
        yield


# Undoing -------------------------------------------------------------------------------------------------------------


def disable(models: Models) -> None:
    """Let no adapter take effect until `enable`."""
    for own in stacks(models).values():
        own.disable()


def enable(models: Models) -> None:
    """Let the active adapters take effect again."""
    for own in stacks(models).values():
        own.enable()


def delete(models: Models, names: str | Sequence[str]) -> None:
    """Remove adapters; when the only active ones go, the first that is left becomes active."""
    names = checked(models, names)
    was_active = bool(active_names(models))
    for own in stacks(models).values():
        for name in names:
            if name in own.names:
                own.remove(name)
    left = all_names(models)
    if was_active and left and not active_names(models):
        activate(models, {left[0]: None})
        logger.info("The active adapters were deleted; %r is active now.", left[0])


def unload(models: Models) -> None:
    """Remove every adapter, out of the weights too."""
    fused = fused_names(models)
    if fused:
        logger.warning(
            "%s: fused, and taken out of the weights again. To keep the fused weights, save the pipeline before.",
            some(fused),
        )
    for own in stacks(models).values():
        for name in own.names:
            own.remove(name)


def fuse(models: Models, *, scale: float = 1.0, safe: bool = False, names: str | Sequence[str] | None = None) -> None:
    """Make adapters, by default the active ones, part of the weights of all networks, or of none.

    Raises:
        ConfigError: there is nothing to fuse.
        NonFiniteError: with `safe`, when a weight would not be finite.
    """
    chosen = None if names is None else checked(models, names)
    plans = {}
    for component, own in stacks(models).items():
        wanted = own.active if chosen is None else [name for name in chosen if name in own.names]
        plans[component] = [name for name in wanted if name not in own.fused]
    if not any(plans.values()):
        raise ConfigError("There is no adapter to fuse: none is active, or all are fused already.")
    done: list[str] = []
    try:
        for component, plan in plans.items():
            if plan:
                Stack(models[component]).fuse(plan, scale=scale, safe=safe)
                done.append(component)
    except BaseException:
        for component in done:
            Stack(models[component]).unfuse(plans[component])
        raise


def unfuse(models: Models) -> None:
    """Take every fused adapter out of the weights, which are then exactly what they were.

    Raises:
        ConfigError: none is fused.
    """
    found = {component: own for component, own in stacks(models).items() if own.fused}
    if not found:
        raise ConfigError("There is no fused adapter in these networks.")
    for own in found.values():
        own.unfuse()


def combine(models: Models, names: Sequence[str], weights: Sequence[float], name: str, **options: Any) -> None:
    """Merge adapters into a new one, which becomes the only active one.

    Args:
        weights: one for each of `names`.
        name: of the new adapter.
        options: see `merging.merge`.
    """
    from .merging import merge

    names, name = checked(models, names), _name_for(models, name, hotswap=False)
    if len(weights) != len(names):
        raise InputError(f"There are {len(weights)} weights for {len(names)} adapters; give one for each.")
    merged: Adapter = {}
    for component, own in stacks(models).items():
        here = [(own.parts(each), weight) for each, weight in zip(names, weights, strict=True) if each in own.names]
        if here:
            parts, shares = zip(*here, strict=True)
            merged[component] = merge(own.model, parts, shares, **options)
    _put(models, name, merged)
    activate(models, {name: None})


def move(models: Models, names: str | Sequence[str], device: torch.device | str | int) -> None:
    """Move the tensors of adapters to a device; those that are to be used must lie on their network's."""
    for name in checked(models, names):
        for own in stacks(models).values():
            if name in own.names:
                for path in own.layers(name):
                    own.delta(name, path).to(device)


# Saving --------------------------------------------------------------------------------------------------------------


def loaded(models: Models, name: str | None = None) -> tuple[Adapter, Facts]:
    """Return the parts of an adapter, by default the only one there is or the only active one, and what its file said.

    Raises:
        ConfigError: there is none, or several.
    """
    present = all_names(models)
    if name is None:
        choices = present if len(present) == 1 else active_names(models)
        if len(choices) != 1:
            what = f"loaded are: {some(present)}; give adapter_name" if present else "no adapter is loaded"
            raise ConfigError(f"It is not clear which adapter to save: {what}.")
        name = choices[0]
    checked(models, name)
    adapter: Adapter = {}
    facts = Facts()
    for component, own in stacks(models).items():
        if name in own.names:
            facts = own.record(name).origin or facts
            adapter[component] = {path: as_stored(parts, facts, path) for path, parts in own.parts(name).items()}
    return adapter, facts


def as_stored(parts: Parts, facts: Facts, path: str) -> Parts:
    """Return parts in the type that they had in their file, where that keeps their values."""
    dtype = facts.dtypes.get(path)
    if dtype is None:
        return parts
    stored = parts.map(lambda tensor: tensor.to(dtype))
    exact = all(torch.equal(stored.tensors[n].to(tensor.dtype), tensor) for n, tensor in parts.tensors.items())
    return stored if exact else parts


def cast(adapter: Adapter, dtype: torch.dtype | None) -> Adapter:
    """Return an adapter with its tensors in a type; None keeps theirs."""
    if dtype is None:
        return adapter
    return {
        component: {path: parts.map(lambda tensor: tensor.to(dtype)) for path, parts in layers.items()}
        for component, layers in adapter.items()
    }


def save(
    models: Models,
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    dialect: str | None = None,
    original: bool = False,
    dtype: torch.dtype | None = None,
    **writing: Any,
) -> None:
    """Write a loaded adapter into a folder.

    Args:
        name: of the adapter; by default the only one, or the only active one.
        dialect: "diffusers", "diffusers-old", "peft" or "kohya"; by default that of its file if it can be written.
        original: in "kohya", name the layers of a UNet as in its authors' layout.
        dtype: cast the tensors.
        writing: see `files.write_tensors`.
    """
    adapter, facts = loaded(models, name)
    spelt = None
    if original:
        tables = {c: original_names(bare(models[c]), layers) for c, layers in adapter.items()}
        spelt = {c: {path: written for written, path in table.items()} for c, table in tables.items()}
    write(cast(adapter, dtype), folder, facts, dialect=dialect, names=spelt, **writing)


def write(
    adapter: Adapter,
    folder: str | os.PathLike,
    facts: Facts | None = None,
    *,
    dialect: str | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
    **writing: Any,
) -> None:
    """Write an adapter into a folder.

    Args:
        facts: what its file said.
        dialect, writing: as for `save`.
        names: see `dialects.writing.written`.
    """
    facts = facts or Facts()
    dialect = dialect or expressible(adapter, facts.dialect)
    state, metadata = written(adapter, dialect, metadata=facts.metadata, names=names)
    metadata.pop("format", None)
    write_tensors(folder, state, metadata, **writing)


def expressible(adapter: Adapter, dialect: str) -> str:
    """Return the dialect, or the one of LyCORIS where an adapter has parts that the dialect has no words for."""
    words = DIALECTS[dialect].written
    fits = all(
        set(parts.tensors) <= set(words.get(parts.algorithm, {}))
        for layers in adapter.values()
        for parts in layers.values()
    )
    return dialect if fits else "kohya"
