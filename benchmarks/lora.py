"""A LoRA of rank 16 over every attention layer of a UNet of SDXL's size: load, fuse, take out of the weights again.

The weights are random and in float16, as SDXL is published. A small UNet goes the same way first, so that imports are
not counted.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from .seeded import SDXL

RANK = 16
FILE = "pytorch_lora_weights.safetensors"
ENDS = ("to_q", "to_k", "to_v", "to_out.0")
SMALL = SDXL | {"block_out_channels": (32, 32, 64), "transformer_layers_per_block": 1, "cross_attention_dim": 32}
SHOWN = 8
"""Layers whose fused weights both libraries are compared by."""


def network(library: str, config: dict[str, Any]) -> Any:
    """Return a UNet with weights that are the same in both libraries."""
    import torch

    with torch.device("meta"):
        unet = importlib.import_module(library).UNet2DConditionModel(**config).half()
    unet = unet.to_empty(device="cpu").eval()
    largest = max(parameter.numel() for parameter in unet.parameters())
    values = (0.02 * torch.randn(largest, generator=torch.Generator().manual_seed(0))).half()
    for parameter in unet.parameters():
        parameter.data.view(-1).copy_(values[: parameter.numel()])
    return unet


def adapted(unet: Any) -> list[str]:
    """Return the names of the attention layers."""
    return sorted(name for name, _ in unet.named_modules() if ".attn" in name and name.endswith(ENDS))


def write(unet: Any, folder: Path) -> None:
    """Write a LoRA for a UNet, if there is none yet."""
    import torch
    from safetensors.torch import save_file

    if (folder / FILE).exists():
        return
    folder.mkdir(exist_ok=True)
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name in adapted(unet):
        out, features = unet.get_submodule(name).weight.shape
        for factor, shape in (("lora_A", (RANK, features)), ("lora_B", (out, RANK))):
            tensors[f"unet.{name}.{factor}.weight"] = (0.02 * torch.randn(shape, generator=generator)).half()
    save_file(tensors, folder / FILE)


def timed(unet: Any, folder: Path) -> dict[str, float]:
    """Return the seconds of each step."""
    steps = {
        "load": lambda: unet.load_lora_adapter(folder, prefix="unet", weight_name=FILE, adapter_name="style"),
        "fuse": lambda: unet.fuse_lora(),
    }
    found = {}
    for step, call in steps.items():
        start = time.perf_counter()
        call()
        found[step] = time.perf_counter() - start
    return found


def lora(library: str, folder: Path) -> dict[str, float]:
    """Load and fuse a LoRA, one after the other and together; then undo. Needs 8 GB. Unit: ms."""
    import torch

    small = network(library, SMALL)
    write(small, folder / "lora-small")
    timed(small, folder / "lora-small")
    unet = network(library, SDXL)
    write(unet, folder / "lora")
    layers = [unet.get_submodule(name) for name in adapted(unet)][:: len(adapted(unet)) // SHOWN]
    before = [layer.weight.detach().clone() for layer in layers]
    found = timed(unet, folder / "lora")
    weights = [getattr(layer, "base_layer", layer).weight.detach() for layer in layers]
    change = [after.float() - own.float() for after, own in zip(weights, before, strict=True)]
    torch.save(torch.cat([tensor.flatten() for tensor in change]), folder / f"lora-{library}.pt")
    start = time.perf_counter()
    unet.unfuse_lora()
    found["unfuse"] = time.perf_counter() - start
    found["load and fuse"] = found["load"] + found["fuse"]
    return {f"LoRA {step}, ms": seconds * 1e3 for step, seconds in found.items()}
