"""Where weights go: the type and the device that a caller asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core.errors import ConfigError, InputError, did_you_mean

LOOKED_FOR = {"cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}
"""Kinds of devices whose absence torch tells in words that name no cure."""


def resolve_dtype(torch_dtype: Any, dtype: Any) -> torch.dtype | None:
    """Return the asked type from the two spellings of the argument, each a torch.dtype, its name, "auto" or None.

    None for "auto" (keep what the file holds); float32, torch's default, where nothing is asked.
    Raises ConfigError for an unknown name, a type that cannot hold weights, or two different answers.
    """
    if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
        raise ConfigError(f"torch_dtype={torch_dtype} and dtype={dtype} contradict each other; they mean the same")
    asked = torch_dtype if torch_dtype is not None else dtype
    if asked == "auto":
        return None
    if asked is None:
        return torch.get_default_dtype()
    names = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    names |= {"fp16": torch.float16, "half": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if isinstance(asked, str):
        found = names.get(asked.removeprefix("torch."))
        if found is None:
            raise ConfigError(f"dtype is {asked!r}{did_you_mean(asked, [*names, 'auto'])}")
        return found
    if not isinstance(asked, torch.dtype) or not asked.is_floating_point:
        raise ConfigError(f"dtype is {asked!r}; valid: a floating torch.dtype or one of {', '.join([*names, 'auto'])}")
    return asked


def present(device: Any) -> torch.device:
    """Return a device as torch has it, if it is here; a number is that of an accelerator.

    Raises:
        InputError: naming the devices that are here.
    """
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = ["cpu", *([] if kind is None else [f"{kind.type}:{k}" for k in range(torch.accelerator.device_count())])]
    try:
        place = torch.device("cuda", device) if isinstance(device, int) and kind is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"The device is {device!r}{did_you_mean(str(device), [*here, 'cuda'])}") from error
    if place.type in LOOKED_FOR and f"{place.type}:{place.index or 0}" not in here:
        meant = f"{device!r}, which means {str(place)!r}" if isinstance(device, int) else repr(str(place))
        raise InputError(
            f"The device is {meant}, and torch {torch.__version__} finds no such {LOOKED_FOR[place.type]} device here; "
            f"there is {', '.join(map(repr, here))}."
        )
    return place


def resolve_device(device_map: Any) -> torch.device:
    """Return the one device of a `device_map`: None, a device, its name, "auto"/"balanced", or {"": device}.

    Raises ConfigError for a map that spreads one model over several devices.
    """
    if isinstance(device_map, Mapping):
        places = set(map(str, device_map.values()))
        if len(places) != 1:
            raise ConfigError(f"device_map spreads one model over {', '.join(sorted(places))}; give a single device")
        device_map = next(iter(device_map.values()))
    if device_map is None:
        return torch.device("cpu")
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        accelerator = torch.accelerator.current_accelerator()
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device_map is {device_map!r}, no device of torch; valid: 'cpu', 'cuda', 'auto'") from error
