"""Published checkpoints of Stable Diffusion as names and shapes: networks without values, and their single files."""

from __future__ import annotations

import json
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


Part = tuple[str, str]
"""A class and its options as JSON: networks of several files are built once."""


@cache
def built(part: Part) -> torch.nn.Module:
    """Return a network without values."""
    import transformers

    kind, options = part[0], json.loads(part[1])
    with Hollow():
        if not kind.startswith("CLIP"):
            return getattr(langevin, kind)(**options)
        return getattr(transformers, kind)(transformers.CLIPTextConfig(**options))


@cache
def turned(part: Part, family: str, component: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a network in a file, without values."""
    place = next(place for place in family_named(family).places if place.component == component)
    return dict(reverted(built(part), place).items())


def parts(name: str) -> dict[str, Part]:
    """Return component -> class and options of the networks of a published checkpoint."""
    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    vae = UPSCALER_VAE if "upscaler" in name else VAE
    found = {"unet": ("UNet2DConditionModel", CONDITIONAL[name]), "vae": ("AutoencoderKL", vae)}
    found |= {part: (kinds[part], config) for part, config in FILES[name][1].items()}
    return {component: (kind, json.dumps(options)) for component, (kind, options) in found.items()}


def networks(name: str) -> dict[str, Any]:
    """Return the networks of a published checkpoint, without values."""
    return {component: built(part) for component, part in parts(name).items()}


def tensors(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a published checkpoint's single file, without values."""
    held = ((part, FILES[name][0], component) for component, part in parts(name).items())
    return {key: value for each in held for key, value in turned(*each).items()}


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
