"""Weight files as people have them: names, shapes and metadata of full size, and next to nothing on the disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

import langevin
from langevin.core.weights_io import NAMES
from langevin.weights.checkpoint import Reverted
from langevin.weights.layouts import controls, ldm, tiny
from tests.data.published_configs import SD15, SD21, SDXL, SDXL_REFINER, X4_UPSCALER

Shapes = Mapping[str, tuple[int, ...]]
ONE = torch.zeros(())
UNET, VAE = "model.diffusion_model.", "first_stage_model."
VAE_CONFIG = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
FEW = {"block_out_channels": (320, 640), "layers_per_block": 1}
FEW_DOWN = {**FEW, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
FEW_SD = {**FEW_DOWN, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": (5, 10)}
FEW_XL = {
    **FEW,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (5, 10),
}
"""Options of networks with few layers, where what is asked shows in the width of the text and the names alone."""


def write(path: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None, dtype=torch.float16) -> Path:
    """Write a safetensors file whose values are a hole in the disk, read as zeros."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        end = position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return path


def pickled(path: Path, shapes: Shapes, wrap: Callable[[dict], Any] = lambda state: state, **options: Any) -> Path:
    """Write a file as torch.save does, one value that stands for those of all tensors."""
    torch.save(wrap({name: ONE.expand(shape) for name, shape in shapes.items()}), path, **options)
    return path


# -- networks in the layout of this library ---------------------------------------------------------------------------


@cache
def network(name: str, options: str) -> Any:
    with torch.device("meta"):
        return getattr(langevin, name)(**json.loads(options))


def own(name: str, **options: Any) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a network of this library."""
    return _own(name, json.dumps(options))


@cache
def _own(name: str, options: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network(name, options).state_dict().items()}


def unet(config: Mapping[str, Any] = SD15, **options: Any) -> dict[str, tuple[int, ...]]:
    return own("UNet2DConditionModel", **{**config, **options})


def clip_text(width: int = 768, layers: int = 12, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return names and shapes of CLIP's text encoder as transformers writes it."""
    top, wide = f"{prefix}text_model", 4 * width
    found = {f"{top}.embeddings.token_embedding.weight": (49408, width)}
    found |= {f"{top}.embeddings.position_embedding.weight": (77, width)}
    found |= both(f"{top}.final_layer_norm", (width,))
    for k in range(layers):
        layer = f"{top}.encoder.layers.{k}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= both(f"{layer}.self_attn.{name}", (width, width))
        found |= both(f"{layer}.mlp.fc1", (wide, width)) | both(f"{layer}.mlp.fc2", (width, wide))
        found |= both(f"{layer}.layer_norm1", (width,)) | both(f"{layer}.layer_norm2", (width,))
    return found


def open_clip(width: int, layers: int, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a text encoder as OpenCLIP writes it."""
    found = {f"{prefix}token_embedding.weight": (49408, width), f"{prefix}positional_embedding": (77, width)}
    found |= {f"{prefix}text_projection": (width, width), f"{prefix}logit_scale": ()}
    found |= both(f"{prefix}ln_final", (width,))
    for k in range(layers):
        layer = f"{prefix}transformer.resblocks.{k}"
        found |= {f"{layer}.attn.in_proj_weight": (3 * width, width), f"{layer}.attn.in_proj_bias": (3 * width,)}
        found |= both(f"{layer}.attn.out_proj", (width, width)) | both(f"{layer}.ln_1", (width,))
        found |= both(f"{layer}.mlp.c_fc", (4 * width, width)) | both(f"{layer}.mlp.c_proj", (width, 4 * width))
        found |= both(f"{layer}.ln_2", (width,))
    return found


def both(stem: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.weight": shape, f"{stem}.bias": shape[:1]}


# -- checkpoints in their authors' layout -----------------------------------------------------------------------------


def original(layout: Any, name: str, prefix: str, **options: Any) -> dict[str, tuple[int, ...]]:
    """Return the authors' names and shapes of a network."""
    return _original(layout.rules, name, prefix, json.dumps(options))


@cache
def _original(
    rules: Callable[[Mapping[str, Any]], Any], name: str, prefix: str, options: str
) -> dict[str, tuple[int, ...]]:
    model = network(name, options)
    state = Reverted(model.state_dict(), rules(model.config), prefix=prefix)
    return {key: tuple(state[key].shape) for key in state}


def original_unet(config: Mapping[str, Any], prefix: str = UNET, **more: Any) -> dict[str, tuple[int, ...]]:
    return original(ldm.UNET, "UNet2DConditionModel", prefix, **{**config, **more})


def original_vae(prefix: str = VAE) -> dict[str, tuple[int, ...]]:
    return original(ldm.VAE, "AutoencoderKL", prefix, **VAE_CONFIG)


TABLES = {"betas": (1000,), "alphas_cumprod": (1000,)}


def sd1(**more: Any) -> dict[str, tuple[int, ...]]:
    text = clip_text(prefix="cond_stage_model.transformer.")
    return {**original_unet(SD15, **more), **original_vae(), **text, **TABLES}


def sd2(config: Mapping[str, Any] = SD21, **more: Any) -> dict[str, tuple[int, ...]]:
    return {**original_unet(config, **more), **original_vae(), **open_clip(1024, 24, "cond_stage_model.model.")}


def sdxl(**more: Any) -> dict[str, tuple[int, ...]]:
    first = clip_text(prefix="conditioner.embedders.0.transformer.")
    second = open_clip(1280, 32, "conditioner.embedders.1.model.")
    return {**original_unet(SDXL, **more), **original_vae(), **first, **second}


def refiner() -> dict[str, tuple[int, ...]]:
    return {**original_unet(SDXL_REFINER), **original_vae(), **open_clip(1280, 32, "conditioner.embedders.0.model.")}


def upscaler() -> dict[str, tuple[int, ...]]:
    return sd2(X4_UPSCALER)


def control(prefix: str = "control_model.", **more: Any) -> dict[str, tuple[int, ...]]:
    return original(controls.CONTROLNET, "ControlNetModel", prefix, cross_attention_dim=768, **more)


def taesd() -> dict[str, tuple[int, ...]]:
    return original(tiny.TINY, "AutoencoderTiny", "taesd_")


# -- adapters ---------------------------------------------------------------------------------------------------------


def attentions(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the projections of all attentions of a UNet, path -> shape."""
    ends = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(ends)}


def lora(layers: Shapes, spell: Callable[[str], str], ends: tuple[str, str], rank: int = 8, alpha: str | None = None):
    """Return a LoRA on layers: names as `spell` and `ends` make them, for the halves down and up."""
    found: dict[str, tuple[int, ...]] = {}
    for path, shape in layers.items():
        found |= {f"{spell(path)}.{ends[0]}": (rank, shape[1]), f"{spell(path)}.{ends[1]}": (shape[0], rank)}
        found |= {f"{spell(path)}.{alpha}": ()} if alpha else {}
    return found


def kohya(layers: Shapes, rank: int = 8, prefix: str = "lora_unet_") -> dict[str, tuple[int, ...]]:
    ends = ("lora_down.weight", "lora_up.weight")
    return lora(layers, lambda path: prefix + path.replace(".", "_"), ends, rank, "alpha")


def ip_adapter(shapes: Shapes, tokens: int = 4, embedding: int = 1024) -> dict[str, tuple[int, ...]]:
    """Return the base IP-Adapter of a UNet; attentions are counted through, self-attentions included."""
    keys = [shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    width = keys[0][1]
    found = {**both("image_proj.proj", (tokens * width, embedding)), **both("image_proj.norm", (width,))}
    for k, shape in enumerate(keys):
        found |= {f"ip_adapter.{2 * k + 1}.{name}_ip.weight": shape for name in ("to_k", "to_v")}
    return found


def cut(path: Path, length: int) -> Path:
    """Return a copy of the beginning of a file."""
    target = path.with_name(f"cut-{length}-{path.name}")
    with open(path, "rb") as file, open(target, "wb") as out:
        out.write(file.read(min(length, header_length(file))))
        out.truncate(length)
    return target


def header_length(file: BinaryIO) -> int:
    """Return the number of bytes before the values of an opened safetensors file."""
    length = 8 + int.from_bytes(file.read(8), "little")
    file.seek(0)
    return length


def without(shapes: Shapes, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    gone = set(names)
    return {name: shape for name, shape in shapes.items() if name not in gone}
