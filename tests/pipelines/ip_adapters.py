"""Random IP-Adapters in the layouts of published files, tiny or at full size."""

from __future__ import annotations

import torch

import langevin
from langevin.adapters.ip_adapter import numbered
from tests.pipelines import tiny

SEES, EMBEDS, FACE = 16, tiny.WIDTH, 12
"""Width of the states of `tiny.image_encoder`, of its embedding, and of the embedding of a face."""


def layers(width: int, inner: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a resampler's layers."""
    found: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            found |= {f"layers.{i}.{norm}.weight": (width,), f"layers.{i}.{norm}.bias": (width,)}
        found |= {
            f"layers.{i}.0.to_q.weight": (inner, width),
            f"layers.{i}.0.to_kv.weight": (2 * inner, width),
            f"layers.{i}.0.to_out.weight": (width, inner),
            f"layers.{i}.1.1.weight": (4 * width, width),
            f"layers.{i}.1.3.weight": (width, 4 * width),
        }
    return found


def linear(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a layer with a bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def projection(kind: str, context: int, *, embeds=EMBEDS, sees=SEES, face=FACE, tokens=4, width=64, inner=128, depth=4):
    """Return the names and shapes of the projection of a published kind.

    Args:
        context: width of the tokens.
        embeds, sees, face: width of what it reads.
        tokens: per picture.
        width, inner, depth: of the resampler and its attention.
    """
    heads = {
        **linear("proj.0", 2 * face, face),
        **linear("proj.2", tokens * context, 2 * face),
        **linear("norm", context),
    }
    if kind == "base":
        return {**linear("proj", tokens * context, embeds), **linear("norm", context)}
    if kind == "full-face":
        return {**linear("proj.0", sees, sees), **linear("proj.2", context, sees), **linear("proj.3", context)}
    if kind == "faceid":
        return heads
    if kind == "plus":
        ends = {"latents": (1, tokens, width), **linear("proj_in", width, sees)}
        ends |= {**linear("proj_out", context, width), **linear("norm_out", context)}
        return ends | layers(width, inner, depth)
    ends = {**linear("proj_in", context, sees), **linear("proj_out", context, context), **linear("norm_out", context)}
    below = {**ends, **layers(context, inner, depth)}
    return heads | {f"perceiver_resampler.{name}": shape for name, shape in below.items()}


def attention(unet, *, lora: int = 0) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the keys and values for a UNet, and of LoRA layers of a rank."""
    found = {}
    for number, name in numbered(unet).items():
        attn = unet.get_submodule(name)
        width, context = attn.inner_dim, attn.cross_attention_dim
        if attn.is_cross_attention:
            found |= {f"{number}.to_{k}_ip.weight": (width, context) for k in "kv"}
        if lora:
            for layer, given in (("to_q", width), ("to_k", context), ("to_v", context), ("to_out", width)):
                found |= {f"{number}.{layer}_lora.down.weight": (lora, given)}
                found |= {f"{number}.{layer}_lora.up.weight": (width, lora)}
    return found


def values(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Return random tensors of these shapes, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return {name: value + 1 if value.dim() == 1 and name.endswith("weight") else value for name, value in made.items()}


def adapter(kind: str, unet, *, seed: int = 0, lora: int = 0, **options) -> dict[str, dict[str, torch.Tensor]]:
    """Return a random adapter for a UNet of this library, in the two parts of a .bin file."""
    shapes = projection(kind, unet.config.cross_attention_dim, **options)
    return {"image_proj": values(shapes, seed), "ip_adapter": values(attention(unet, lora=lora), seed + 1)}


def flat(state) -> dict[str, torch.Tensor]:
    """Return an adapter as a .safetensors file holds it."""
    return {f"{part}.{name}": value for part, inside in state.items() for name, value in inside.items()}


def load(pipes, *states) -> None:
    """Load adapters into the peer's pipeline and ours."""
    for pipe in pipes:
        given = [{part: dict(inside) for part, inside in state.items()} for state in states]
        library = type(pipe).__module__.partition(".")[0]
        nothing = [None] * len(given) if len(given) > 1 else None
        more = {} if library == langevin.__name__ else {"subfolder": nothing, "weight_name": nothing}
        given = given if len(given) > 1 else given[0]
        pipe.load_ip_adapter(given, image_encoder_folder=None, **more)


def faces(rows: int = 2, pictures: int = 1, seed: int = 3) -> torch.Tensor:
    """Return embeddings of faces (rows, pictures, width)."""
    return torch.randn(rows, pictures, FACE, generator=torch.Generator().manual_seed(seed))
