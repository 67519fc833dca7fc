"""Encoders of text and pictures: CLIP (2103.00020) as transformers writes it, and as OpenCLIP (2212.07143) does.

The rules lead to the names of `CLIPTextModelWithProjection` and `CLIPVisionModelWithProjection`. Whether a class puts
`text_model.` before its names depends on the version of transformers; `spelling` asks the class itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...core.errors import WeightsError
from ..family import Config, Layout
from ..header import Header
from ..ops import Split, Transpose
from ..rules import Rules, below, renamed, rule

PARTS = ("embeddings", "encoder", "final_layer_norm")
QKV = ("q_proj", "k_proj", "v_proj")
BLOCK = [
    *renamed({"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}),
    rule("attn.out_proj", "self_attn.out_proj"),
    rule("attn.in_proj_weight", [f"self_attn.{name}.weight" for name in QKV], Split(3)),
    rule("attn.in_proj_bias", [f"self_attn.{name}.bias" for name in QKV], Split(3)),
]
"""One layer of OpenCLIP, which keeps query, key and value in one matrix."""
HEAD_WIDTH = 64
PENULTIMATE = {1024: 23}
"""Width of the text encoder of SD 2 -> the layers it uses: all but the last of OpenCLIP ViT-H's 24."""


def spelling(names: Iterable[str], part: str = "text_model.") -> Callable[[str], str]:
    """Return how a model spells the names of rules: as they are, or without the leading `part`."""
    if any(name.startswith(part) for name in names):
        return str
    return lambda name: name.removeprefix(part)


def canonical(rules: Rules, names: Iterable[str]) -> list[str]:
    """Return a model's names as rules spell them, with the prefix that some versions of its class leave out."""
    return [name if rules.inverse.find(name) else f"text_model.{name}" for name in names]


def text_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a text encoder in the names of transformers, older ones without `text_model.` included."""
    older = [rule(name, f"text_model.{name}", old=True) for name in PARTS]
    return Rules([rule("text_model", "text_model"), rule("text_projection", "text_projection"), *older])


def open_text_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a text encoder in the names of OpenCLIP."""
    return Rules(
        [
            rule("token_embedding", "text_model.embeddings.token_embedding"),
            rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
            rule("ln_final", "text_model.final_layer_norm"),
            rule("text_projection", "text_projection.weight", Transpose()),
            *below("transformer.resblocks.{}", "text_model.encoder.layers.{}", BLOCK),
        ]
    )


def open_vision_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of an image encoder in the names of OpenCLIP and of OpenAI's first CLIP."""
    return Rules(
        [
            rule("class_embedding", "vision_model.embeddings.class_embedding"),
            rule("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
            rule("conv1", "vision_model.embeddings.patch_embedding"),
            rule("ln_pre", "vision_model.pre_layrnorm"),
            rule("ln_post", "vision_model.post_layernorm"),
            rule("proj", "visual_projection.weight", Transpose()),
            *below("transformer.resblocks.{}", "vision_model.encoder.layers.{}", BLOCK),
        ]
    )


def _heads(width: int) -> int:
    if width % HEAD_WIDTH:
        raise WeightsError(
            f"the encoder is {width} wide, no multiple of {HEAD_WIDTH}, so its number of heads cannot be told; "
            f"pass `config`, a folder with its configuration"
        )
    return width // HEAD_WIDTH


def text_options(words: tuple[int, ...], positions: tuple[int, ...], inner: int, layers: int) -> Config:
    """Return the options that follow from shapes; the last two words of CLIP's vocabulary begin and end a text."""
    return {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(words[1]),
        "max_position_embeddings": positions[0],
        "bos_token_id": words[0] - 2,
        "eos_token_id": words[0] - 1,
    }


def infer_text(header: Header) -> Config:
    """Return the options of a text encoder in the names of transformers."""
    base = "text_model." if header.has("text_model.final_layer_norm.weight") else ""
    layers, embeddings = f"{base}encoder.layers", f"{base}embeddings"
    words, positions = (header.shape(f"{embeddings}.{name}_embedding.weight") for name in ("token", "position"))
    inner = header.shape(f"{layers}.0.mlp.fc1.weight")
    if words is None or positions is None or inner is None:
        raise WeightsError("the text encoder has no embeddings or layers; pass the component, or `config`")
    config = text_options(words, positions, inner[0], header.count(f"{layers}.{{}}"))
    projection = header.shape("text_projection.weight")
    return {**config, "projection_dim": projection[0] if projection else words[1], "hidden_act": "quick_gelu"}


def infer_open_text(header: Header) -> Config:
    """Return the options of a text encoder in the names of OpenCLIP, all of its layers."""
    words, positions = header.shape("token_embedding.weight"), header.shape("positional_embedding")
    inner = header.shape("transformer.resblocks.0.mlp.c_fc.weight")
    if words is None or positions is None or inner is None:
        raise WeightsError("the text encoder has no embeddings or layers; pass the component, or `config`")
    config = text_options(words, positions, inner[0], header.count("transformer.resblocks.{}"))
    projection = header.shape("text_projection")
    return {**config, "projection_dim": projection[1] if projection else words[1], "hidden_act": "gelu"}


def infer_penultimate(header: Header) -> Config:
    """Return the options of a text encoder that is used up to its last layer but one.

    A file that still has the projection is the whole tower; one without it was written from the layers that are used.
    """
    config = infer_open_text(header)
    used = config["num_hidden_layers"] - ("text_projection" in header.shapes)
    return {**config, "num_hidden_layers": PENULTIMATE.get(config["hidden_size"], used), "projection_dim": 512}


def unused_of_penultimate(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what a text encoder with these options leaves out of the whole tower."""
    last = config["num_hidden_layers"]
    return {
        rf"transformer\.resblocks\.{last}\.": "the layer after the one whose output is used",
        r"text_projection$": "the projection of the whole text, which this family does not use",
    }


def infer_open_vision(header: Header) -> Config:
    """Return the options of an image encoder in the names of OpenCLIP; CLIP ViT-L/14 is the one with quick_gelu."""
    patch, grid, projection = (header.shape(n) for n in ("conv1.weight", "positional_embedding", "proj"))
    inner = header.shape("transformer.resblocks.0.mlp.c_fc.weight")
    if patch is None or grid is None or inner is None or projection is None:
        raise WeightsError("the image encoder is not whole; pass `image_encoder`, or `config`")
    side, heads = patch[2] * round((grid[0] - 1) ** 0.5), {1280: 16}.get(patch[0]) or _heads(patch[0])
    return {
        "hidden_size": patch[0],
        "intermediate_size": inner[0],
        "num_hidden_layers": header.count("transformer.resblocks.{}"),
        "num_attention_heads": heads,
        "patch_size": patch[2],
        "image_size": side,
        "projection_dim": projection[1],
        "hidden_act": "quick_gelu" if patch[0] == 1024 else "gelu",
    }


COUNTERS = {
    r"(text_model\.)?embeddings\.position_ids$": "a table of counted positions",
    r"(logit_scale|attn_mask|logit_bias)$": "belongs to CLIP's training",
    r"(text_model\.)?transformer\.resblocks\.\d+\.attn\.mask$": "a constant mask",
}
WITH_PROJECTION = "transformers.CLIPTextModelWithProjection"
OPEN_MARKS = ("ln_final.weight",)
TEXT = Layout(
    "CLIP text encoder",
    "transformers.CLIPTextModel",
    ("text_model.final_layer_norm.weight", "final_layer_norm.weight"),
    text_rules,
    infer_text,
    COUNTERS,
)
OPEN_TEXT = Layout("OpenCLIP text encoder", WITH_PROJECTION, OPEN_MARKS, open_text_rules, infer_open_text, COUNTERS)
PENULTIMATE_TEXT = Layout(
    "OpenCLIP text encoder up to the last layer but one",
    "transformers.CLIPTextModel",
    OPEN_MARKS,
    open_text_rules,
    infer_penultimate,
    COUNTERS,
    unused_of_penultimate,
)
OPEN_VISION = Layout(
    "OpenCLIP image encoder",
    "transformers.CLIPVisionModelWithProjection",
    ("ln_post.weight",),
    open_vision_rules,
    infer_open_vision,
    COUNTERS,
)


def noise_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of the mean and deviation of image embeddings that Stable unCLIP adds noise with."""
    return Rules(renamed({"data_mean": "mean", "data_std": "std"}))


def infer_noise(header: Header) -> Config:
    """Return the width of the image embeddings."""
    return {"embedding_dim": (header.shape("data_mean") or (0,))[-1]}


NORMALIZER = Layout(
    "mean and deviation of image embeddings", "StableUnCLIPImageNormalizer", ("data_mean",), noise_rules, infer_noise
)
