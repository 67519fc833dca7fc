"""The dialect of kohya-ss, LyCORIS, A1111 and TheLastBen: flat names of layers, an alpha beside every layer.

LyCORIS: Yeh et al. 2023 (2309.14859). The names of UNet layers are those of the diffusers layout or of the original
one (`input_blocks_4_1_...`); both are matched against the model's own layers. TheLastBen's files are the same without
alpha. DoRA: Liu et al. 2024 (2402.09353).
"""

from __future__ import annotations

from .grammar import ALPHA, ANY, Dialect, Part

WRITTEN = {
    "lora": {
        "down": "lora_down.weight",
        "up": "lora_up.weight",
        "mid": "lora_mid.weight",
        "bias": "lora_up.bias",
        "magnitude": "dora_scale",
    },
    "loha": {
        **{part: f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
        "magnitude": "dora_scale",
    },
    "lokr": {
        **{part: f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
        "magnitude": "dora_scale",
    },
    "oft": {"blocks": "oft_blocks", "rescale": "rescale"},
    "full": {"diff": "diff", "diff_bias": "diff_b"},
}
NORMS = {"diff": "w_norm", "diff_bias": "b_norm"}
"""How the differences of a norm are called."""

KOHYA = Dialect(
    name="kohya",
    prefixes={
        "unet": ("lora_unet_", "lycoris_", "oft_unet_"),
        "text_encoder": ("lora_te_", "lora_te1_"),
        "text_encoder_2": ("lora_te2_",),
        "text_encoder_3": ("lora_te3_",),
        "transformer": ("lora_transformer_",),
    },
    ends={
        **{end: Part(kind, part) for kind, parts in WRITTEN.items() for part, end in parts.items()},
        **{end: Part("full", part) for part, end in NORMS.items()},
        "dora_scale": Part(ANY, "magnitude"),
        "oft_diag": Part("oft", "blocks"),
        "alpha": Part(ANY, ALPHA),
    },
    written=WRITTEN,
    norms=NORMS,
    flat=True,
    alpha="alpha",
)
