"""Published checkpoints of Stable Diffusion as names and shapes: networks without values, and their single files."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import langevin
from langevin.models.hollow import Hollow
from langevin.weights.detect import detect
from langevin.weights.family import Facts
from langevin.weights.header import Header
from langevin.weights.saving import family_named, reverted
from tests.data.published_configs import CONDITIONAL

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
UPSCALER_VAE = {**VAE, "block_out_channels": [128, 256, 512]}
UPSCALER_VAE |= {f"{half}_block_types": VAE[f"{half}_block_types"][:3] for half in ("down", "up")}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"projection_dim": 768}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_H |= {"hidden_act": "gelu"}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"hidden_act": "gelu", "projection_dim": 1280}
SD1, SD2, XL = {"text_encoder": CLIP_L}, {"text_encoder": CLIP_H}, {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}

FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd-1.5": ("stable_diffusion", SD1),
    "sd-1.5-inpainting": ("stable_diffusion", SD1),
    "sd-1.5-instruct-pix2pix": ("stable_diffusion", SD1),
    "sd-2.1": ("stable_diffusion_2", SD2),
    "sd-2-depth": ("stable_diffusion_2", SD2),
    "sd-2-inpainting": ("stable_diffusion_2", SD2),
    "sd-x4-upscaler": ("stable_diffusion_2", SD2),
    "stable-unclip-h": ("stable_diffusion_2", SD2),
    "stable-unclip-l": ("stable_diffusion_2", SD2),
    "sdxl-base": ("stable_diffusion_xl", XL),
    "sdxl-inpainting": ("stable_diffusion_xl", XL),
    "sdxl-instruct-pix2pix": ("stable_diffusion_xl", XL),
    "sdxl-refiner": ("stable_diffusion_xl_refiner", {"text_encoder_2": CLIP_G}),
}
"""Name of the UNet's configuration -> family of the file, and its text encoders."""


@cache
def networks(name: str) -> dict[str, torch.nn.Module]:
    """Return the networks of a published checkpoint, without values."""
    import transformers

    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    with Hollow():
        found: dict[str, Any] = {
            "unet": langevin.UNet2DConditionModel(**CONDITIONAL[name]),
            "vae": langevin.AutoencoderKL(**(UPSCALER_VAE if "upscaler" in name else VAE)),
        }
        for part, config in FILES[name][1].items():
            found[part] = getattr(transformers, kinds[part])(transformers.CLIPTextConfig(**config))
    return found


@cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a published checkpoint's single file, without values."""
    found: dict[str, torch.Tensor] = {}
    for place in family_named(FILES[name][0]).places:
        if place.component in networks(name):
            found |= dict(reverted(networks(name)[place.component], place).items())
    return found


def facts_of(header: Header) -> Facts:
    """Return what a file is, told from its header."""
    found = detect(header)
    assert found is not None and found[0].name == found[1].family
    return found[1]


def header(name: str, *, only: str = "", **metadata: str) -> Header:
    """Return the header of a published checkpoint's file.

    Args:
        only: keep the names with this prefix.
        metadata: strings of the file, with "__" for a dot.
    """
    shapes = {key: tuple(value.shape) for key, value in tensors(name).items() if key.startswith(only)}
    return Header(shapes, dict.fromkeys(shapes, torch.float16), {k.replace("__", "."): v for k, v in metadata.items()})
