"""The dialect of PEFT: `lora_A` and `lora_B`, ranks and alphas in a configuration beside the tensors.

In a safetensors file that configuration is the metadata `lora_adapter_metadata`, a JSON object whose keys begin with
the component ("unet.lora_alpha") or stand alone; PEFT's own folders have it as `adapter_config.json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...core.errors import WeightsError
from .diffusers import COMPONENTS, PREFIXES
from .grammar import Dialect, Part
from .parts import Adapter, Parts

METADATA = "lora_adapter_metadata"

PEFT = Dialect(
    name="peft",
    prefixes=PREFIXES,
    ends={
        end.replace("?", middle): Part("lora", part)
        for middle in ("", ".*")
        for end, part in (
            ("lora_A?.weight", "down"),
            ("lora_B?.weight", "up"),
            ("lora_B?.bias", "bias"),
            ("lora_magnitude_vector?", "magnitude"),
            ("lora_magnitude_vector?.weight", "magnitude"),
        )
    },
    written={
        "lora": {
            "down": "lora_A.weight",
            "up": "lora_B.weight",
            "bias": "lora_B.bias",
            "magnitude": "lora_magnitude_vector",
        }
    },
)
WRAPPER = "base_model.model."
"""What PEFT puts before every layer of a model that it wraps."""


def configurations(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return component -> the configuration that a file's metadata hold for it; "" for one without a component.

    Raises:
        WeightsError: for metadata that are no JSON object.
    """
    text = metadata.get(METADATA)
    if text is None:
        return {}
    try:
        values = json.loads(text)
        items = list(values.items())
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"The metadata {METADATA} are not a JSON object ({error}); fetch the file again") from error
    found: dict[str, dict[str, Any]] = {}
    for key, value in items:
        component, dot, name = key.partition(".")
        where, name = (component, name) if dot and component in COMPONENTS else ("", key)
        found.setdefault(where, {})[name] = value
    return found


def alpha_of(names: Sequence[str], rank: int, config: Mapping[str, Any]) -> float | None:
    """Return the alpha of a layer, so that alpha / rank is its scale, or None where the configuration has none.

    Args:
        names: every name that the layer may have in a configuration.
    """
    alpha = looked_up(names, config.get("alpha_pattern"), config.get("lora_alpha"))
    if alpha is None:
        return None
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def looked_up(names: Sequence[str], patterns: Mapping[str, Any] | None, default: Any) -> Any:
    """Return what the patterns of a configuration say about a layer: whole steps at the end of its path."""
    for pattern, value in (patterns or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            return value
    return default


def configuration_of(layers: Mapping[str, Parts]) -> dict[str, Any]:
    """Return the configuration that describes the ranks and alphas of a component's layers."""
    ranks = {path: parts.tensors["down"].shape[0] for path, parts in layers.items()}
    alphas = {path: ranks[path] if parts.alpha is None else tidy(parts.alpha) for path, parts in layers.items()}
    rank, alpha = most_common(ranks.values()), most_common(alphas.values())
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(path): value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(path): value for path, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
        "use_dora": any("magnitude" in parts.tensors for parts in layers.values()),
        "lora_bias": any("bias" in parts.tensors for parts in layers.values()),
    }


def described(adapter: Adapter) -> bool:
    """Tell whether an adapter needs a configuration: some layer has an alpha other than its rank."""
    return any(
        parts.alpha is not None and parts.alpha != parts.tensors["down"].shape[0]
        for layers in adapter.values()
        for parts in layers.values()
    )


def tidy(number: float) -> float | int:
    """Return a whole number as an integer."""
    return int(number) if float(number).is_integer() else number


def most_common(values: Iterable[Any]) -> Any:
    """Return the value that occurs most, the first of these."""
    values = list(values)
    return max(values, key=values.count)


def magnitude_shape(magnitude: Tensor, ndim: int) -> tuple[int, ...]:
    """Return the shape in which PEFT keeps a magnitude: (out,) of a linear layer, (1, out, 1, 1) of a convolution."""
    return (magnitude.numel(),) if ndim == 2 else (1, magnitude.numel(), *(1 for _ in range(ndim - 2)))
