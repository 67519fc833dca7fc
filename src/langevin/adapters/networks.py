"""The documented adapter methods of a single network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.errors import InputError
from ..nn.compiled import bare
from ..weights.dialects.writing import written
from . import custom_diffusion, lora
from .files import KNOWN, opened, write_tensors
from .fresh import fresh
from .stack import Stack

CUSTOM = "custom_diffusion"


def component_of(model: nn.Module) -> str:
    """Return the component that a network is in the names of files: a UNet, or the transformer in its place."""
    return "unet" if hasattr(bare(model), "down_blocks") else "transformer"


def load_adapter(
    model: nn.Module, where: Any, *, prefix: str | None = None, hotswap: bool = False, **options: Any
) -> None:
    """Attach a LoRA of any dialect; see `AdapterMixin.load_lora_adapter`."""
    source = opened(where, "load_lora_adapter", options)
    component = component_of(model)
    if prefix and prefix not in (component, *lora.dialects.STAND_INS):
        start = f"{prefix}."
        inside = {name.removeprefix(start): t for name, t in source.state.items() if name.startswith(start)}
        source.state = inside or source.state
    lora.load({component: model}, source, name=options.get("adapter_name"), hotswap=hotswap)


def load_processors(model: nn.Module, where: Any, **options: Any) -> None:
    """Attach a LoRA, or the weights of Custom Diffusion; see `AdapterMixin.load_attn_procs`."""
    source = opened(where, "load_attn_procs", options, names=(*KNOWN, *custom_diffusion.FILES))
    if any(CUSTOM in name for name in source.state):
        custom_diffusion.load(model, source.state)
        return
    lora.load({component_of(model): model}, source, name=options.get("adapter_name"))


def save_processors(
    model: nn.Module,
    folder: str | os.PathLike,
    writing: Mapping[str, Any],
    *,
    adapter_name: str | None = None,
    dialect: str | None = None,
) -> None:
    """Write the attached adapter, or the weights of Custom Diffusion; see `AdapterMixin.save_attn_procs`."""
    if custom_diffusion.is_loaded(model):
        custom_diffusion.save(model, folder, **writing)
        return
    lora.save({component_of(model): model}, folder, name=adapter_name, dialect=dialect, **writing)


def save_adapter(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    adapter_name: str,
    writing: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write an adapter in PEFT's names without a component; see `AdapterMixin.save_lora_adapter`."""
    adapter, facts = lora.loaded({"": model}, adapter_name)
    layers = lora.cast(adapter, dtype)[""]
    state, metadata = written({"": layers}, "peft", metadata=facts.metadata)
    write_tensors(folder, state, metadata, **writing)


def add_fresh(model: nn.Module, config: Any, name: str) -> None:
    """Attach a new LoRA for training; see `AdapterMixin.add_adapter`."""
    if name in lora.all_names({"": model}):
        raise InputError(f"The adapter name {name!r} is in use; choose another, or delete that adapter.")
    Stack(model).add(name, fresh(bare(model), config), trainable=True)
    lora.activate({"": model}, {name: None})


def set_adapters(model: nn.Module, names: str | Sequence[str], weights: Any) -> None:
    """Make adapters active with weights, nested ones by block; see `AdapterMixin.set_adapters`."""
    component = component_of(model)
    several = isinstance(weights, Sequence)
    row = [{component: one} if isinstance(one, Mapping) else one for one in (weights if several else [weights])]
    lora.set_adapters({component: model}, names, row if several else row[0])
