"""An adapter written in the words of a dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError, WeightsError, did_you_mean
from . import peft
from .grammar import ALGORITHM_NAMES, Dialect
from .naming import flattened, published
from .parts import Adapter, Parts
from .words import DIALECTS


def written(
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
    given = peft.configurations(metadata)
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


def spell(
    dialect: Dialect, component: str, path: str, parts: Parts, *, name: str | None, components: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the tensors of one layer by their names in a dialect.

    Args:
        name: the layer's name where it is not the published form of its path.
        components: every component of the adapter.

    Raises:
        WeightsError: naming what the dialect cannot express and what can.
    """
    layer, leaf = name or published(component, path), ""
    if dialect.leaves:
        layer, leaf = _processor(dialect, layer, component)
    stem = _prefix(dialect, component, components) + (flattened(layer) if dialect.flat else layer)
    ends = {**dialect.ends_for(component, parts.algorithm), **(dialect.norms if _is_norm(parts) else {})}
    found = {}
    for part, tensor in parts.tensors.items():
        if part not in ends:
            _cannot(dialect, f"{part!r} of {ALGORITHM_NAMES[parts.algorithm]} (at {path!r})")
        if part == "magnitude" and not dialect.flat:
            tensor = _gathered(dialect, path, tensor, parts)
        found[f"{stem}.{ends[part].format(leaf=leaf)}"] = tensor
    if dialect.alpha is not None and parts.alpha is not None:
        found[f"{stem}.{dialect.alpha.format(leaf=leaf)}"] = torch.tensor(parts.alpha)
    elif parts.alpha is not None and parts.algorithm != "lora":
        _cannot(dialect, f"the alpha of {ALGORITHM_NAMES[parts.algorithm]}")
    return found


def _cannot(dialect: Dialect, thing: str) -> None:
    raise WeightsError(f"The dialect {dialect.name!r} has no words for {thing}; write it as 'kohya'.")


def _prefix(dialect: Dialect, component: str, components: tuple[str, ...]) -> str:
    """Return what stands before a component's layers; beside a second text encoder the first is numbered too.

    A network that is no component ("") has no prefix.
    """
    if not component and not dialect.flat:
        return ""
    if component not in dialect.prefixes:
        raise WeightsError(f"The dialect {dialect.name!r} has no prefix for {component!r}; write it as 'diffusers'.")
    choices = dialect.prefixes[component]
    numbered = dialect.flat and component == "text_encoder" and "text_encoder_2" in components
    return choices[-1] if numbered else choices[0]


def _processor(dialect: Dialect, layer: str, component: str) -> tuple[str, str]:
    """Return the attention's processor and its projection."""
    attention, _, leaf = layer.removesuffix(".0").rpartition(".")
    if component != "unet" or leaf not in dialect.leaves:
        raise WeightsError(
            f"The dialect {dialect.name!r} has no words for {layer!r} of {component}: it knows the attention "
            "projections of a UNet alone; write it as 'diffusers'."
        )
    return f"{attention}.processor", leaf


def _is_norm(parts: Parts) -> bool:
    """Tell whether a difference is that of a norm: its weight has one dimension."""
    return parts.algorithm == "full" and "diff" in parts.tensors and parts.tensors["diff"].ndim == 1


def _gathered(dialect: Dialect, path: str, magnitude: Tensor, parts: Parts) -> Tensor:
    """Return a magnitude as PEFT keeps it."""
    if magnitude.shape[0] != magnitude.numel():
        _cannot(dialect, f"a magnitude of the inputs (at {path!r})")
    return magnitude.reshape(peft.magnitude_shape(magnitude, parts.tensors["down"].ndim))
