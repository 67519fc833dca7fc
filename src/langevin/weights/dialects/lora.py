"""Adapter files of every dialect, read into parts.

Reading knows all dialects at once. Every tensor of a file must find its layer, or the file is refused before anything
is attached; what belongs to a component that is not there is left out with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...core.errors import WeightsError, nearest
from ...core.report import LoadReport, counted, some
from . import peft
from .families import made_for
from .grammar import ALGORITHM_NAMES, ALPHA, ANY, BUNDLES
from .kohya import KOHYA
from .naming import Names, Shape, fits, lacking, published
from .parts import Adapter, Parts
from .words import DIALECTS, ENDS, PREFIXES, Word, dialect_of, take_apart

STAND_INS: Mapping[str, str] = {"unet": "transformer", "transformer": "unet"}
"""Component -> the one that takes its place in pipelines that have no such component."""
NEAREST = 3
"""How many of the names in a message are shown with their nearest valid ones."""


@dataclass
class Reading:
    """What a file holds: the adapter, which names took effect, how they were spelt, and the file's own metadata."""

    adapter: Adapter
    report: LoadReport
    dialect: str
    metadata: dict[str, str]


# Reading -------------------------------------------------------------------------------------------------------------


def read(
    state: Mapping[str, Tensor],
    targets: Mapping[str, Names],
    *,
    metadata: Mapping[str, str] | None = None,
    what: str = "The adapter",
    strict: bool = True,
) -> Reading:
    """Read the tensors of an adapter file for the components of a pipeline.

    Args:
        state: name -> tensor.
        targets: component -> its layers.
        metadata: the strings stored in the file.
        what: how the file is called in messages.
        strict: False leaves what finds no place to the report.

    Raises:
        WeightsError: names that lead nowhere, halves without the other, shapes of another model, an algorithm that is
            not supported, or a file of which nothing is for these components.
    """
    metadata = dict(metadata or {})
    try:
        words = [(name, take_apart(name)) for name in state if not name.startswith(BUNDLES)]
    except WeightsError as error:
        raise WeightsError(f"{what} cannot be loaded: {error}") from error
    report = LoadReport()
    report.ignored |= {
        name: "a textual inversion inside the file; load it by `load_textual_inversion`"
        for name in state
        if name.startswith(BUNDLES)
    }
    groups: dict[tuple[str, str], dict[str, Word]] = {}
    for name, word in words:
        place = None if word is None else _place(word, targets)
        if word is None or place is None:
            report.unexpected_keys.append(name)
        elif place[1] is None:
            report.ignored[name] = f"there is no {place[0]} here"
        else:
            group = groups.setdefault((place[0], place[1]), {})
            _put(group, word, what)
    adapter: Adapter = {}
    configs = peft.configurations(metadata)
    for (component, path), group in groups.items():
        config = configs.get(component, configs.get("", {}))
        parts = _assemble(group, state, path, config, report)
        if parts is None:
            continue
        shapes = shapes_of(parts.tensors)
        if not fits(parts.algorithm, shapes, targets[component].shapes[path]):
            told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            report.mismatched_keys.append((f"{component}.{path} ({told})", (), targets[component].shapes[path]))
            continue
        adapter.setdefault(component, {})[path] = parts
        report.applied += parts.stored
    if strict:
        _refuse(what, report, [word for _, word in words if word is not None], targets, state)
    return Reading(adapter, report, dialect_of(word for _, word in words if word), metadata)


def _place(word: Word, targets: Mapping[str, Names]) -> tuple[str, str | None] | None:
    """Return component and path of a tensor's layer; None for the path where the component is absent, for all where
    the layer is."""
    if word.component is None:
        found = ((name, target.find(word.layer, flat=word.flat)) for name, target in targets.items())
        return next(((name, path) for name, path in found if path is not None), None)
    component = word.component
    if component not in targets:
        component = STAND_INS.get(component, component)
    if component not in targets:
        return word.component, None
    path = targets[component].find(word.layer, flat=word.flat)
    return None if path is None else (component, path)


def _put(group: dict[str, Word], word: Word, what: str) -> None:
    """Add a tensor to those of its layer.

    Raises:
        WeightsError: when the layer has such a tensor already, or tensors of another algorithm.
    """
    if word.part.part in group:
        both = f"{group[word.part.part].key!r} and {word.key!r}"
        raise WeightsError(f"{what} holds two tensors for one place: {both}; a file is one adapter.")
    group[word.part.part] = word
    kinds = sorted({other.part.algorithm for other in group.values()} - {ANY})
    if len(kinds) > 1:
        names = " and ".join(ALGORITHM_NAMES[kind] for kind in kinds)
        raise WeightsError(f"{what} mixes {names} in one layer, {word.layer!r}, which is not supported.")


def _assemble(
    group: Mapping[str, Word], state: Mapping[str, Tensor], path: str, config: Mapping[str, Any], report: LoadReport
) -> Parts | None:
    """Return the parts of one layer; None, with the reason in the report, when some are missing."""
    kinds = {word.part.algorithm for word in group.values()} - {ANY}
    keys = tuple(word.key for word in group.values())
    if not kinds:
        report.unexpected_keys += keys
        return None
    algorithm = kinds.pop()
    tensors = {name: state[word.key] for name, word in group.items() if name != ALPHA}
    gone = lacking(algorithm, frozenset(tensors))
    if gone:
        report.missing_keys += [_sibling(next(iter(group.values())), algorithm, part) for part in sorted(gone)]
        return None
    if algorithm == "oft" and tensors["blocks"].ndim == 4:
        raise WeightsError(f"{keys[0]!r} belongs to BOFT, which is not supported; OFT is.")
    if "magnitude" in tensors:
        tensors["magnitude"] = _spread(tensors["magnitude"], tensors)
    alpha = None
    if ALPHA in group:
        alpha = float(state[group[ALPHA].key])
    elif algorithm == "lora":
        component = next(iter(group.values())).component or "unet"
        alpha = peft.alpha_of((path, published(component, path)), tensors["down"].shape[0], config)
    return Parts(algorithm, tensors, alpha, keys)


def _spread(magnitude: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a magnitude in the shape that multiplies a weight: PEFT keeps (out,) and (1, out, 1, 1)."""
    if magnitude.ndim == 1:
        return magnitude[:, None]
    if magnitude.ndim == 4 and magnitude.shape[0] == 1 and "up" in tensors:
        out = tensors["up"].shape[0]
        if magnitude.shape[1] == out and out != 1:
            return magnitude.transpose(0, 1)
    return magnitude


def _sibling(word: Word, algorithm: str, part: str) -> str:
    """Return the name that a missing part would have beside a tensor that is there."""
    end = DIALECTS[word.dialect].written.get(algorithm, {}).get(part) or KOHYA.written[algorithm][part]
    return word.key.removesuffix(word.end) + end.format(leaf=word.part.leaf)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# Refusing ------------------------------------------------------------------------------------------------------------


def _refuse(
    what: str,
    report: LoadReport,
    words: list[Word],
    targets: Mapping[str, Names],
    state: Mapping[str, Tensor],
) -> None:
    """Raise WeightsError for what found no place, saying what the file is likely made for."""
    parts = []
    if report.mismatched_keys:
        shown = [f"{name} for a weight {theirs}" for name, _, theirs in report.mismatched_keys]
        parts.append(f"{counted(shown, 'layer has', 'layers have')} another size ({some(shown, '; ')})")
    if report.missing_keys:
        names = some([repr(name) for name in report.missing_keys])
        parts.append(f"{counted(report.missing_keys, 'tensor is', 'tensors are')} missing ({names})")
    if report.unexpected_keys:
        names = some(_with_nearest(report.unexpected_keys, words, targets))
        parts.append(f"{counted(report.unexpected_keys, 'name leads', 'names lead')} to no layer ({names})")
    if parts:
        family = made_for(shapes_of(state), words)
        hint = f" It looks like an adapter for {family}." if family else ""
        raise WeightsError(f"{what} does not fit, and nothing was attached: {'; '.join(parts)}.{hint}")
    if not report.applied:
        absent = sorted({word.component for word in words if word.component})
        cause = f"it is for {', '.join(absent)}" if absent else "it holds no adapter"
        raise WeightsError(f"{what} has no effect here: {cause}; here are: {', '.join(targets) or 'no components'}.")


def _with_nearest(names: list[str], words: list[Word], targets: Mapping[str, Names]) -> list[str]:
    """Return names in quotes, the first few with the nearest name that would have found a layer."""
    by_key = {word.key: word for word in words}
    shown = []
    for name in names[:NEAREST]:
        near = _nearest(name, by_key.get(name), targets)
        shown.append(f"{name!r} (nearest: {near!r})" if near else repr(name))
    return [*shown, *(repr(name) for name in names[NEAREST:])]


def nearest_name(name: str, targets: Mapping[str, Names]) -> str | None:
    """Return the valid name that is closest to one that leads nowhere, or None."""
    return _nearest(name, take_apart(name), targets)


def _nearest(name: str, word: Word | None, targets: Mapping[str, Names]) -> str | None:
    """Return the valid name that is closest to one that leads nowhere."""
    if word is None:
        words = name.split(".")
        cut = len(words) - (2 if words[-1] in ("weight", "bias") else 1)
        near = nearest(".".join(words[cut:]), [key for key in ENDS if "*" not in key])
        return None if near is None or cut < 1 else ".".join([*words[:cut], near])
    flat = word.flat or "." not in word.layer
    options: dict[str, str] = {}
    for component, target in targets.items():
        if word.component in (None, component):
            prefix = word.prefix or next((p for p, c, f in PREFIXES if c == component and f == flat), "")
            options |= {layer: prefix for layer in target.spelt(flat=flat)}
    layer = word.layer
    if word.component is None:
        wrong = next((cut for cut in _cuts(layer, flat) if cut in options), None)
        if wrong is not None:
            return _whole(word, options[wrong], wrong)
    near = nearest(layer, options)
    return None if near is None else _whole(word, options[near], near)


def _whole(word: Word, prefix: str, layer: str) -> str:
    """Return the whole name of a tensor of a layer."""
    if word.part.leaf:
        layer = layer.removesuffix(f".{word.part.leaf}") + ".processor"
    return f"{prefix}{layer}.{word.end}"


def _cuts(layer: str, flat: bool) -> Iterable[str]:
    """Yield a layer's name without its first words: what is left of one with a wrong prefix."""
    sign = "_" if flat else "."
    words = layer.split(sign)
    return (sign.join(words[k:]) for k in range(1, min(4, len(words))))
