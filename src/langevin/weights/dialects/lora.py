"""Adapter files of every dialect, read into parts and written from them.

Reading knows all dialects at once. Every tensor of a file must find its layer, or the file is refused before anything
is attached; what belongs to a component that is not there is left out with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ...core.errors import ConfigError, WeightsError, did_you_mean, nearest
from ...core.report import LoadReport, counted, some
from . import peft
from .diffusers import DIFFUSERS, PROCESSORS
from .families import made_for
from .grammar import ALGORITHM_NAMES, ALPHA, ANY, BUNDLES, REFUSED, Dialect, Part, match
from .kohya import KOHYA
from .naming import Names, Shape, fits, flattened, lacking, published
from .parts import Adapter, Parts

DIALECTS: Mapping[str, Dialect] = {each.name: each for each in (DIFFUSERS, PROCESSORS, peft.PEFT, KOHYA)}
ENDS: Mapping[str, Part] = {end: part for each in DIALECTS.values() for end, part in each.ends.items()}
OWNERS: Mapping[str, str] = {end: each.name for each in reversed(list(DIALECTS.values())) for end in each.ends}
"""End -> the dialect that it speaks for."""
ORIGINAL_UNET = ("model.diffusion_model.", "diffusion_model.")
PREFIXES: tuple[tuple[str, str, bool], ...] = tuple(
    sorted(
        {
            *(
                (prefix, component, each.flat)
                for each in DIALECTS.values()
                for component, prefixes in each.prefixes.items()
                for prefix in prefixes
                if prefix
            ),
            *((prefix, "unet", False) for prefix in ORIGINAL_UNET),
        },
        key=lambda row: -len(row[0]),
    )
)
"""(prefix, component, whether the layer's name behind it is flat), the longest first."""
STAND_INS: Mapping[str, str] = {"unet": "transformer", "transformer": "unet"}
"""Component -> the one that takes its place in pipelines that have no such component."""
NEAREST = 3
"""How many of the names in a message are shown with their nearest valid ones."""


class Word(NamedTuple):
    """The name of one tensor, taken apart.

    Attributes:
        key: the whole name.
        component: None where the name begins with the layer.
        layer: the layer's name as the file spells it, without prefix.
        flat: whether it is spelt without dots.
        end, part: what stands behind it, and what that means.
        prefix: what stands before it.
    """

    key: str
    component: str | None
    layer: str
    flat: bool
    end: str
    part: Part
    prefix: str


@dataclass
class Reading:
    """What a file holds: the adapter, which names took effect, how they were spelt, and the file's own metadata."""

    adapter: Adapter
    report: LoadReport = field(default_factory=LoadReport)
    dialect: str = "diffusers"
    metadata: dict[str, str] = field(default_factory=dict)


# Names ---------------------------------------------------------------------------------------------------------------


def take_apart(name: str) -> Word | None:
    """Take the name of a tensor apart, or return None when no dialect knows what stands at its end.

    Raises:
        WeightsError: for an algorithm that is not supported.
    """
    found, refused = match(name, ENDS), match(name, REFUSED)
    if found is None:
        if refused is not None:
            known = ", ".join([*ALGORITHM_NAMES.values(), "DoRA"])
            raise WeightsError(f"{name!r} belongs to {refused[2]}, which is not supported; supported: {known}.")
        return None
    stem, end, part = found
    assert isinstance(part, Part)
    component, layer, flat, prefix = placed(stem)
    if part.leaf:
        layer = f"{layer.removesuffix('.processor')}.{part.leaf}"
    return Word(name, component, layer, flat, end, part, prefix)


def placed(stem: str) -> tuple[str | None, str, bool, str]:
    """Split what stands before the end of a name into component, layer, whether that is flat, and the prefix."""
    bare = stem.removeprefix(peft.WRAPPER)
    for prefix, component, flat in PREFIXES:
        if bare.startswith(prefix):
            layer = bare.removeprefix(prefix).removeprefix(peft.WRAPPER)
            return component, layer, flat, stem.removesuffix(layer)
    return None, bare, False, stem.removesuffix(bare)


def dialect_of(words: Iterable[Word]) -> str:
    """Return the dialect that most names of a file are spelt in."""
    ends = [known_end(word.end) for word in words if word.part.part != ALPHA]
    owners = [OWNERS[end] for end in ends if end is not None]
    return peft.most_common(owners) if owners else DIFFUSERS.name


def known_end(end: str) -> str | None:
    """Return the end of the tables that an end in a file is."""
    found = match(f"x.{end}", {key: key for key in ENDS})
    return None if found is None else str(found[2])


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
    configs = peft.configurations(metadata, DIFFUSERS.prefixes)
    for (component, path), group in groups.items():
        config = configs.get(component, configs.get("", {}))
        parts = _assemble(group, state, path, config, report)
        if parts is None:
            continue
        shapes = _shapes(parts.tensors)
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
    owner = DIALECTS[OWNERS[known_end(word.end) or word.end]]
    end = owner.written.get(algorithm, {}).get(part) or KOHYA.written[algorithm][part]
    return word.key.removesuffix(word.end) + end.format(leaf=word.part.leaf)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
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
        family = made_for(_file_shapes(state), words)
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


def _file_shapes(state: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


# Writing -------------------------------------------------------------------------------------------------------------


def write(
    adapter: Adapter,
    dialect: str = "diffusers",
    *,
    metadata: Mapping[str, str] | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of an adapter in a dialect, exactly as they are.

    Args:
        dialect: a key of `DIALECTS`.
        metadata: strings to keep beside them.
        names: component -> path -> the name to write in its place, such as that of the original checkpoint.

    Raises:
        ConfigError: for an unknown dialect.
        WeightsError: for parts that the dialect cannot express.
    """
    from .writing import spell

    if dialect not in DIALECTS:
        raise ConfigError(f"dialect is {dialect!r}{did_you_mean(dialect, DIALECTS)}")
    chosen = DIALECTS[dialect]
    state: dict[str, Tensor] = {}
    for component, layers in adapter.items():
        for path, parts in layers.items():
            name = (names or {}).get(component, {}).get(path)
            state |= spell(chosen, component, path, parts, name=name, components=tuple(adapter))
    kept = dict(metadata or {})
    if chosen.alpha is None:
        kept = _configured(adapter, kept)
    return state, kept


def _configured(adapter: Adapter, metadata: dict[str, str]) -> dict[str, str]:
    """Return metadata with the configuration of every component, where one is needed or was there."""
    import json

    given = peft.configurations(metadata, DIFFUSERS.prefixes)
    if not given and not peft.described(adapter):
        return metadata
    values: dict[str, Any] = {}
    for component, layers in adapter.items():
        before = given.get(component, given.get("", {}))
        config = {**before, **peft.configuration_of(layers)}
        if "target_modules" in before:
            config["target_modules"] = before["target_modules"]
        if "use_rslora" in before:
            config["use_rslora"] = False
        start = f"{component}." if component else ""
        values |= {f"{start}{name}": value for name, value in config.items()}
    return {**metadata, peft.METADATA: json.dumps(values, indent=2, sort_keys=True)}


__all__ = ["DIALECTS", "Reading", "flattened", "read", "take_apart", "write"]
