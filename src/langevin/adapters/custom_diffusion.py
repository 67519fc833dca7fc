"""Custom Diffusion on a network: attentions that use trained projections in place of their own (Kumari et al. 2023)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, WeightsError
from ..core.report import paired, some
from ..nn.attention import Attention
from ..nn.ip_processors import IPAdapterAttnProcessor
from ..nn.processors import CustomDiffusionAttnProcessor, named_attentions
from ..weights.dialects import custom_diffusion as dialect
from ..weights.dialects.custom_diffusion import FILES, KEYS_VALUES, QUERIES_OUTPUTS
from .files import write_tensors
from .guest import make_guest

BEFORE = "_processor_before_custom_diffusion"
"""Name in an attention's `__dict__` of the processor that `unload` puts back."""


def load(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Let attentions use the projections in a state dict, in place of those of an earlier load.

    Raises:
        ConfigError: where an IP-Adapter is attached, whose removal would find other processors than its own.
        WeightsError: for names that lead to no attention of the model, or weights of other shapes. Nothing has changed
            then.
    """
    attentions = dict(named_attentions(model))
    found = dialect.parse(state)
    unknown = [name for name in found if name not in attentions]
    if unknown:
        raise WeightsError(
            f"{type(model).__name__} has no attention {some(paired(unknown, list(attentions)))}: the weights were "
            "trained on another model"
        )
    taken = next((name for name in found if isinstance(attentions[name].processor, IPAdapterAttnProcessor)), None)
    if taken is not None:
        raise ConfigError(f"{taken} has the processor of an IP-Adapter; remove that first with `unload_ip_adapter()`.")
    processors = {name: _processor(name, attentions[name], parts) for name, parts in found.items()}
    unload(model)
    for name, processor in processors.items():
        attentions[name].__dict__[BEFORE] = attentions[name].processor
        attentions[name].set_processor(processor)


def begin(model: nn.Module, *, outputs: bool = False) -> list[nn.Parameter]:
    """Let cross-attentions use copies of their own projections, and return these, which are to be trained.

    Args:
        outputs: copy queries and outputs too, not keys and values alone.

    Raises:
        ConfigError: for a model without cross-attention.
    """
    crossing = {name: attn for name, attn in named_attentions(model) if attn.is_cross_attention}
    if not crossing:
        raise ConfigError(f"{type(model).__name__} has no cross-attention, which Custom Diffusion trains.")
    load(model, dialect.spell({name: _own(attn, outputs) for name, attn in crossing.items()}))
    return [p for attn in crossing.values() for p in attn.processor.requires_grad_(True).parameters()]


def _own(attn: Attention, outputs: bool) -> dict[str, Tensor]:
    """Return the projections of an attention by their names in a processor."""
    layers: dict[str, Any] = {"to_k_custom_diffusion": attn.to_k, "to_v_custom_diffusion": attn.to_v}
    if outputs:
        layers |= {"to_q_custom_diffusion": attn.to_q, "to_out_custom_diffusion.0": attn.to_out[0]}
    return {
        f"{name}.{part}": weight.detach() for name, layer in layers.items() for part, weight in layer.named_parameters()
    }


def unload(model: nn.Module) -> bool:
    """Put the processors back that were there before; return whether there was anything to do."""
    loaded = [attn for _, attn in named_attentions(model) if BEFORE in attn.__dict__]
    for attn in loaded:
        before = attn.__dict__.pop(BEFORE)
        if isinstance(attn.processor, CustomDiffusionAttnProcessor):
            attn.set_processor(before)
    return bool(loaded)


def is_loaded(model: nn.Module) -> bool:
    """Tell whether any attention uses projections of Custom Diffusion."""
    return any(isinstance(attn.processor, CustomDiffusionAttnProcessor) for _, attn in named_attentions(model))


def save(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    weight_name: str | None = None,
    safe: bool = False,
    **writing: Any,
) -> Path:
    """Write the projections that attentions use, and return the file.

    Args:
        weight_name: by default pytorch_custom_diffusion_weights.bin, or .safetensors with `safe`.
        writing: see `files.write_tensors`.
    Raises:
        WeightsError: when there are none.
    """
    parts = {
        name: {part: weight.detach() for part, weight in attn.processor.state_dict().items()}
        for name, attn in named_attentions(model)
        if isinstance(attn.processor, CustomDiffusionAttnProcessor)
    }
    if not any(parts.values()):
        raise WeightsError(f"No attention of this {type(model).__name__} has weights of Custom Diffusion to save")
    name = weight_name or FILES[0 if safe else 1]
    return write_tensors(folder, dialect.spell(parts), {}, weight_name=name, safe=safe, **writing)


def _processor(name: str, attn: Attention, parts: Mapping[str, Tensor]) -> CustomDiffusionAttnProcessor:
    """Return the processor of one attention, in its type and on its device.

    Raises:
        WeightsError: for weights of other shapes than the attention's.
    """
    width, context = attn.to_q.weight.shape[0], attn.cross_attention_dim
    processor = CustomDiffusionAttnProcessor(
        train_kv=KEYS_VALUES[0] in parts,
        train_q_out=QUERIES_OUTPUTS[0] in parts,
        hidden_size=width,
        cross_attention_dim=context,
        out_bias="to_out_custom_diffusion.0.bias" in parts,
    )
    own = processor.state_dict()
    wrong = [
        f"{p}: file {tuple(t.shape)}, model {tuple(own[p].shape)}" for p, t in parts.items() if t.shape != own[p].shape
    ]
    if wrong:
        raise WeightsError(f"{name} has other shapes: {some(wrong, '; ')}: the weights were trained on another model")
    with torch.no_grad():
        processor.load_state_dict(dict(parts))
    processor = processor.to(attn.to_q.weight.device, attn.to_q.weight.dtype).eval().requires_grad_(False)
    make_guest(processor)
    return processor
