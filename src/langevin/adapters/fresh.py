"""A new LoRA for training, from a configuration such as PEFT's `LoraConfig`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, check_count, did_you_mean
from ..weights.dialects.naming import Shape
from ..weights.dialects.parts import Parts
from ..weights.dialects.peft import alpha_of, looked_up
from .lora import names_of

READ = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"),
    *("init_lora_weights", "use_rslora", "use_dora", "lora_bias"),
)
"""The options of a configuration that are read."""
HARMLESS = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "peft_version", "runtime_config"),
)
"""Options that describe a configuration or belong to another one that is off, and change nothing here."""


def fresh(model: nn.Module, config: Any) -> dict[str, Parts]:
    """Return the parts of a new LoRA by path: `up` is zero, so that it changes nothing until it is trained.

    Args:
        config: an object or a mapping with r, lora_alpha, target_modules (ends of paths, one regular expression for
            whole paths, or "all-linear"), and, if it likes, exclude_modules, rank_pattern, alpha_pattern, use_rslora,
            use_dora, lora_bias and init_lora_weights (True, "gaussian", or False for random halves).

    Raises:
        ConfigError: no layer is meant, or an option that is not supported is set.
    """
    options = read_config(config)
    shapes = {path: shape for path, shape in names_of(model).shapes.items() if len(shape) > 1}
    wanted = targeted(shapes, options["target_modules"])
    out = targeted(shapes, options.get("exclude_modules") or (), missing_is_error=False)
    paths = [path for path in shapes if path in wanted and path not in out]
    if not paths:
        ends = sorted({path.rpartition(".")[2] for path in shapes})
        raise ConfigError(
            f"target_modules={options['target_modules']!r} names no layer; layers end in: {', '.join(ends)}."
        )
    layers = dict(model.named_modules())
    return {path: begin(layers[path], path, shapes[path], options) for path in paths}


def read_config(config: Any) -> dict[str, Any]:
    """Return the options of a configuration.

    Raises:
        ConfigError: a needed one is missing, or one that is not supported differs from its default.
    """
    given = dict(config) if isinstance(config, Mapping) else {k: v for k, v in vars(config).items() if k[0] != "_"}
    for name in ("r", "target_modules"):
        if given.get(name) is None:
            raise ConfigError(f"The configuration of an adapter needs {name!r}.")
    initial = given.get("init_lora_weights", True)
    if initial not in START:
        options = [repr(key) for key in START]
        raise ConfigError(f"init_lora_weights is {initial!r}{did_you_mean(str(initial), options)}")
    defaults = vars(type(config))
    for name, value in given.items():
        plain = not value or value in ("none", defaults.get(name))
        if name not in (*READ, *HARMLESS) and not plain:
            raise ConfigError(f"The option {name}={value!r} of the configuration is not supported; leave it out.")
    return {name: given[name] for name in READ if name in given}


def targeted(paths: Mapping[str, Shape], targets: str | Iterable[str], *, missing_is_error: bool = True) -> set[str]:
    """Return the paths that targets mean: a regular expression for whole paths, "all-linear", or ends of paths."""
    if targets == "all-linear":
        return {path for path, shape in paths.items() if len(shape) == 2}
    if isinstance(targets, str):
        return {path for path in paths if re.fullmatch(targets, path)}
    ends = list(targets)
    found = {end: {path for path in paths if path == end or path.endswith(f".{end}")} for end in ends}
    empty = [end for end, hits in found.items() if not hits]
    if empty and missing_is_error:
        tails = {".".join(path.split(".")[-n:]) for path in paths for n in (1, 2)}
        raise ConfigError(f"No layer is called {empty[0]!r}{did_you_mean(empty[0], tails)}")
    return {path for hits in found.values() for path in hits}


def begin(layer: nn.Module, path: str, shape: Shape, options: Mapping[str, Any]) -> Parts:
    """Return the parts of one layer before training, in float32 on the layer's device."""
    rank = looked_up((path,), options.get("rank_pattern"), options["r"])
    check_count("r", rank)
    out, features, *kernel = shape
    weight = layer.weight
    device = weight.device if isinstance(weight, Tensor) else torch.device("cpu")
    down = torch.empty(rank, features, *kernel, device=device)
    up = torch.zeros(out, rank, *(1 for _ in kernel), device=device)
    START[options.get("init_lora_weights", True)](down, up, rank)
    tensors = {"down": down, "up": up}
    if options.get("lora_bias"):
        tensors["bias"] = torch.zeros(out, device=device)
    if options.get("use_dora"):
        rows = weight.detach().float().flatten(1).norm(dim=1)  # type: ignore[operator]
        tensors["magnitude"] = rows.reshape(out, *(1 for _ in shape[1:]))
    return Parts("lora", tensors, alpha_of((path,), rank, {"lora_alpha": rank, **options}))


def kaiming(down: Tensor, up: Tensor, rank: int) -> None:
    """Draw `down` as the weights of a linear layer are drawn."""
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))


def gaussian(down: Tensor, up: Tensor, rank: int) -> None:
    """Draw `down` from a normal distribution of standard deviation 1 / rank."""
    nn.init.normal_(down, std=1 / rank)


def both(down: Tensor, up: Tensor, rank: int) -> None:
    """Draw both halves, so that neither is zero."""
    for half in (down, up):
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))


START: Mapping[Any, Callable[[Tensor, Tensor, int], None]] = {
    True: kaiming,
    "kaiming": kaiming,
    "gaussian": gaussian,
    False: both,
}
"""`init_lora_weights` -> how the halves begin."""
