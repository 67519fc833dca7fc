"""One layer of an adapter in the words of a dialect."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import WeightsError
from .grammar import ALGORITHM_NAMES, Dialect
from .kohya import KOHYA, NORMS
from .naming import flattened, published
from .parts import Parts
from .peft import magnitude_shape


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
    if dialect.name == "diffusers-old":
        layer, leaf = _processor(layer, component, parts)
    stem = _prefix(dialect, component, components) + (flattened(layer) if dialect.flat else layer)
    ends = dialect.ends_for(component, parts.algorithm)
    found = {}
    for part, tensor in parts.tensors.items():
        if part not in ends:
            _cannot(dialect, f"{part!r} of {ALGORITHM_NAMES[parts.algorithm]} (at {path!r})")
        end = NORMS[part] if dialect is KOHYA and _is_norm(parts) else ends[part]
        if part == "magnitude" and not dialect.flat:
            tensor = _gathered(dialect, path, tensor, parts)
        found[f"{stem}.{end.format(leaf=leaf)}"] = tensor
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


def _processor(layer: str, component: str, parts: Parts) -> tuple[str, str]:
    """Return the attention's processor and its projection, which is all that the first dialect knew."""
    attention, _, leaf = layer.removesuffix(".0").rpartition(".")
    if component != "unet" or leaf not in ("to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj"):
        raise WeightsError(
            f"The dialect 'diffusers-old' has no words for {layer!r} of {component}: it knows the attention "
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
    return magnitude.reshape(magnitude_shape(magnitude, parts.tensors["down"].ndim))
