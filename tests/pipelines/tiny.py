"""Tiny random components in the documented folder layout, the same for every test."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import torch

WIDTH = 32
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 16,
}
PIXELS = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "PNDMScheduler",
)
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def scheduler(library, name: str, **options):
    """Build a scheduler of a library with the options that Stable Diffusion was released with."""
    options = {**TABLE, "steps_offset": 1, **options}
    if name in ("DDIMScheduler", "DDPMScheduler"):
        options.setdefault("clip_sample", False)
    if name == "PNDMScheduler":
        options.setdefault("skip_prk_steps", True)
    return getattr(library, name)(**options)


def tokenizer(folder: Path):
    """Write and load a CLIP tokenizer that knows single letters and two words."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_encoder(size: int = 194):
    """Build a random text encoder with three layers for `tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return CLIPTextModel(config).eval()


def checker(library):
    """Build a safety checker with thresholds that random pictures pass."""
    from transformers import CLIPConfig

    torch.manual_seed(2)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 8}, projection_dim=16)
    return library(config).eval()


def feature_extractor():
    """Build the picture processor of `checker`."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def image_encoder():
    """Build a random image encoder whose embedding is as wide as the text."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(6)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPVisionConfig(**shape, image_size=32, patch_size=8, projection_dim=WIDTH)
    return CLIPVisionModelWithProjection(config).eval()


def depth_estimator():
    """Build a random depth estimator and its picture processor."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(7)
    config = DPTConfig(
        image_size=32,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=20,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=False,
    )
    reader = DPTImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=1)
    return DPTForDepthEstimation(config).eval(), reader


def both(name: str, **options):
    """Return a scheduler of the peer and the same of this library."""
    import diffusers

    import langevin

    return scheduler(diffusers, name, **options), scheduler(langevin, name, **options)


def networks(library) -> dict:
    """Build a random UNet and autoencoder of a library."""
    torch.manual_seed(0)
    unet = library.UNet2DConditionModel(**UNET).eval()
    torch.manual_seed(3)
    return {"unet": unet, "vae": library.AutoencoderKL(**VAE).eval()}


def unets(**options):
    """Return random UNets with the same weights, the peer's and ours, with options that differ from `UNET`."""
    return same_weights("UNet2DConditionModel", {**UNET, **options})


def vaes(**options):
    """Return random autoencoders with the same weights, with options that differ from `VAE`."""
    return same_weights("AutoencoderKL", {**VAE, **options})


def same_weights(name: str, config: dict):
    """Return a random network of the peer and the same of this library."""
    import diffusers

    import langevin

    torch.manual_seed(5)
    theirs, ours = (getattr(library, name)(**config).eval() for library in (diffusers, langevin))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def picture(seed: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB"):
    """Return a smooth random PIL picture of `size` (width, height)."""
    from PIL import Image

    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).convert(mode)


def hole(size: tuple[int, int] = (16, 16), box: tuple[int, int, int, int] = (4, 6, 12, 14)):
    """Return a mask of `size` (width, height), white inside a box (left, top, right, bottom)."""
    from PIL import Image

    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def constructor(cls) -> list[str]:
    """Return the names of the arguments of a class."""
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]


def pixel_unet(library):
    """Build a random UNet in pixel space."""
    torch.manual_seed(4)
    return library.UNet2DModel(**PIXELS).eval()


def stable_diffusion(library, folder: Path, **components):
    """Build a Stable Diffusion pipeline of a library; `folder` takes the tokenizer's files."""
    parts = {
        **networks(library),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(folder / "words"),
        "scheduler": scheduler(library, "PNDMScheduler"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipe = library.StableDiffusionPipeline(**{**parts, **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe
