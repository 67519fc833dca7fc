"""Random LoRAs for the networks of a pipeline, spelt in every dialect by hand."""

from __future__ import annotations

import torch
from torch import nn

UNET = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
RANK = 3


def targets(model: nn.Module, ends: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return path -> shape of the weight, of layers whose paths end so."""
    return {
        path: tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path.endswith(ends)
    }


def random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 0.2


def halves(model: nn.Module, ends: tuple[str, ...] = UNET, *, seed: int = 0, rank: int = RANK, strength: float = 1.0):
    """Return path -> (down, up) of a random LoRA."""
    generator = torch.Generator().manual_seed(seed)
    return {
        path: (
            random((rank, shape[1], *shape[2:]), generator),
            strength * random((shape[0], rank, *(1 for _ in shape[2:])), generator),
        )
        for path, shape in targets(model, ends).items()
    }


def published(path: str) -> str:
    """Return a path of a text encoder as files have it."""
    return path if path.startswith("text_model.") or not path.startswith("encoder.") else f"text_model.{path}"


def diffusers(parts: dict[str, dict]) -> dict[str, torch.Tensor]:
    """Spell component -> path -> (down, up) as diffusers does now."""
    state = {}
    for component, layers in parts.items():
        middle = "lora" if component == "unet" else "lora_linear_layer"
        for path, (down, up) in layers.items():
            stem = f"{component}.{published(path)}.{middle}"
            state |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return state


def processors(parts: dict[str, dict]) -> dict[str, torch.Tensor]:
    """Spell the attentions of a UNet as diffusers did first."""
    state = {}
    for path, (down, up) in parts["unet"].items():
        attention, _, leaf = path.removesuffix(".0").rpartition(".")
        stem = f"unet.{attention}.processor.{leaf}_lora"
        state |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return state


def peft(parts: dict[str, dict], name: str = "") -> dict[str, torch.Tensor]:
    """Spell an adapter as PEFT does."""
    state = {}
    for component, layers in parts.items():
        for path, (down, up) in layers.items():
            stem = f"{component}.{published(path)}"
            state |= {f"{stem}.lora_A{name}.weight": down, f"{stem}.lora_B{name}.weight": up}
    return state


def kohya(parts: dict[str, dict], alpha: float | None = 2.0, names: dict[str, str] | None = None):
    """Spell an adapter as kohya's scripts do; `names` are those of the UNet's layers in the original layout."""
    two = "text_encoder_2" in parts
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}
    state = {}
    for component, layers in parts.items():
        for path, (down, up) in layers.items():
            name = (names or {}).get(path, published(path)) if component == "unet" else published(path)
            stem = prefixes[component] + name.replace(".", "_")
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            if alpha is not None:
                state[f"{stem}.alpha"] = torch.tensor(alpha)
    return state
