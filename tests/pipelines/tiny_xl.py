"""Tiny random Stable Diffusion XL components, a base and a refiner, the same for every test."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.pipelines import tiny

WIDTH, POOLED, EACH = 24, 20, 8
"""Width of the second text encoder, of its projected embedding, and of one embedded size."""
UNET = {
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": EACH,
    "projection_class_embeddings_input_dim": 6 * EACH + POOLED,
    "cross_attention_dim": tiny.WIDTH + WIDTH,
}
REFINER = {
    **UNET,
    "projection_class_embeddings_input_dim": 5 * EACH + POOLED,
    "cross_attention_dim": WIDTH,
}


def text_encoder_2(size: int = 194):
    """Build a random text encoder with a projection, for `tiny.tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(11)
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        projection_dim=POOLED,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_act="gelu",
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=0,
    )
    return CLIPTextModelWithProjection(config).eval()


def unet(library, **options):
    """Build a random UNet of a library with options that differ from those of the base."""
    torch.manual_seed(12)
    return library.UNet2DConditionModel(**{**tiny.UNET, **UNET, **options}).eval()


def vae(library, **options):
    """Build a random autoencoder of a library."""
    torch.manual_seed(3)
    return library.AutoencoderKL(**{**tiny.VAE, "scaling_factor": 0.13025, **options}).eval()


def tokenizers(folder: Path) -> dict:
    """Write and load both tokenizers; the second fills texts up with another token."""
    second = tiny.tokenizer(folder / "words_2")
    second.pad_token = "!"
    return {"tokenizer": tiny.tokenizer(folder / "words"), "tokenizer_2": second}


def parts(library, folder: Path) -> dict:
    """Build the components of a base."""
    return {
        "vae": vae(library),
        "text_encoder": tiny.text_encoder(),
        "text_encoder_2": text_encoder_2(),
        **tokenizers(folder),
        "unet": unet(library),
        "scheduler": tiny.scheduler(library, "EulerDiscreteScheduler"),
    }


def base(library, folder: Path):
    """Build a base pipeline; `folder` takes the tokenizers' files."""
    return library.StableDiffusionXLPipeline(**parts(library, folder))


def refiner(library, folder: Path):
    """Build a refiner: one text encoder, aesthetic scores."""
    found = {**parts(library, folder), "text_encoder": None, "tokenizer": None, "unet": unet(library, **REFINER)}
    return library.StableDiffusionXLImg2ImgPipeline(**found, requires_aesthetics_score=True)
