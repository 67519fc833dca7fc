"""The dialects of diffusers: layers under their own names, `lora.down` and `lora.up` (now), or processors (first).

Alpha goes into the metadata now. The first dialect knew the attention projections of a UNet alone.
"""

from __future__ import annotations

from .grammar import ALPHA, ANY, Dialect, Part

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer")
PREFIXES = {name: (f"{name}.",) for name in COMPONENTS}
LEAVES = ("to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj")
"""The projections that an attention processor of the first dialect adapts."""
HALVES = {"down": "down.weight", "up": "up.weight", "bias": "up.bias"}
MAGNITUDE = {"magnitude": "lora_magnitude_vector"}

DIFFUSERS = Dialect(
    name="diffusers",
    prefixes=PREFIXES,
    ends={
        **{
            f"{stem}.{end}": Part("lora", part)
            for stem in ("lora", "lora_linear_layer")
            for part, end in {**HALVES, ALPHA: "alpha"}.items()
        },
        "alpha": Part(ANY, ALPHA),
        "lora_magnitude_vector": Part("lora", "magnitude"),
    },
    written={"lora": {**{part: f"lora.{end}" for part, end in HALVES.items()}, **MAGNITUDE}},
    written_text={"lora": {**{part: f"lora_linear_layer.{end}" for part, end in HALVES.items()}, **MAGNITUDE}},
)

PROCESSORS = Dialect(
    name="diffusers-old",
    prefixes={**PREFIXES, "unet": ("unet.", "")},
    ends={
        f"{leaf}_lora.{half}": Part("lora", part, leaf)
        for leaf in LEAVES
        for half, part in (("down.weight", "down"), ("up.weight", "up"), ("alpha", ALPHA))
    },
    leaves=LEAVES,
    written={"lora": {"down": "{leaf}_lora.down.weight", "up": "{leaf}_lora.up.weight"}},
    alpha="{leaf}_lora.alpha",
)
