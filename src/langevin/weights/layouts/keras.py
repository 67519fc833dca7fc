"""Stable Diffusion 1 as KerasCV writes it: the UNet, and the text encoder of CLIP.

A network is a row of layers in the order in which KerasCV makes them. `BLOCKS` says what is inside of each, again in
that order: `weights.keras` counts both, so position and name of every weight follow. Dense layers are (in, out) there
and convolutions (height, width, in, out).

KerasCV computes GELU by its tanh approximation, and the norm before each transformer with an epsilon of 1e-5, not
1e-6; the published weights are trained with the exact GELU and 1e-6, which are kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...core.errors import WeightsError
from ..family import Config, Facts, Family, Layout, Place
from ..header import Header, Shape
from ..keras import disordered, layer_counts
from ..ops import SAME, Op, Permute, Transpose
from ..rules import Rule, Rules, below, dotted, rule
from .clip import text_options
from .ldm import HEADS, attends, layers_of


class Kind(NamedTuple):
    """The weights of a simple layer, as Keras calls them, and the operation that turns them into torch's."""

    weights: tuple[str, ...]
    op: Op


NORM = Kind(("gamma", "beta"), SAME)
DENSE = Kind(("kernel", "bias"), Transpose())
MATRIX = Kind(("kernel",), Transpose())
CONV = Kind(("kernel", "bias"), Permute((3, 2, 0, 1)))
TABLE = Kind(("embeddings",), SAME)
TORCH = {"gamma": "weight", "beta": "bias", "kernel": "weight", "bias": "bias", "embeddings": "weight"}


def attention(source: str, target: str) -> tuple[tuple[str, str, Kind], ...]:
    """Return the rows of an attention inside a transformer."""
    parts = (("to_q", "to_q", MATRIX), ("to_k", "to_k", MATRIX), ("to_v", "to_v", MATRIX))
    rows = (*parts, ("out_proj", "to_out.0", DENSE))
    return tuple((f"{source}.{one}", f"{target}.{other}", kind) for one, other, kind in rows)


INNER, OUTER = "transformer_block", "transformer_blocks.0"
BLOCKS: dict[str, tuple[tuple[str, str, Kind], ...]] = {
    "dense": (("", "", DENSE),),
    "group_normalization": (("", "", NORM),),
    "layer_normalization": (("", "", NORM),),
    "padded_conv2d": (("conv2d", "", CONV),),
    "upsample": (("conv.conv2d", "", CONV),),
    "res_block": (
        ("entry_flow.group_normalization", "norm1", NORM),
        ("entry_flow.padded_conv2d.conv2d", "conv1", CONV),
        ("embedding_flow.dense", "time_emb_proj", DENSE),
        ("exit_flow.group_normalization", "norm2", NORM),
        ("exit_flow.padded_conv2d.conv2d", "conv2", CONV),
        ("residual_projection.conv2d", "conv_shortcut", CONV),
    ),
    "spatial_transformer": (
        ("norm", "norm", NORM),
        ("proj1.conv2d", "proj_in", CONV),
        (f"{INNER}.norm1", f"{OUTER}.norm1", NORM),
        *attention(f"{INNER}.attn1", f"{OUTER}.attn1"),
        (f"{INNER}.norm2", f"{OUTER}.norm2", NORM),
        *attention(f"{INNER}.attn2", f"{OUTER}.attn2"),
        (f"{INNER}.norm3", f"{OUTER}.norm3", NORM),
        (f"{INNER}.geglu.dense", f"{OUTER}.ff.net.0.proj", DENSE),
        (f"{INNER}.dense", f"{OUTER}.ff.net.2", DENSE),
        ("proj2.conv2d", "proj_out", CONV),
    ),
    "clip_embedding": (
        ("token_embedding", "token_embedding", TABLE),
        ("position_embedding", "position_embedding", TABLE),
    ),
    "clip_encoder_layer": (
        ("layer_norm1", "layer_norm1", NORM),
        *((f"clip_attn.{name}_proj", f"self_attn.{name}_proj", DENSE) for name in ("q", "k", "v", "out")),
        ("layer_norm2", "layer_norm2", NORM),
        ("fc1", "mlp.fc1", DENSE),
        ("fc2", "mlp.fc2", DENSE),
    ),
}
"""Class of a layer -> its parts in the order of their making: path in Keras, path here, and kind."""


def inside(block: str) -> list[Rule]:
    """Return the rules of a layer's weights in both ways of writing; that of Keras 2, by position, is also written."""
    rules: list[Rule] = []
    position = 0
    for source, target, kind in BLOCKS[block]:
        for number, weight in enumerate(kind.weights):
            there = dotted(target, TORCH[weight])
            rules.append(rule(f"{position}.{weight}", there, kind.op))
            rules.append(rule(dotted(source, f"vars.{number}"), there, kind.op, old=True))
            position += 1
    return rules


def shape_of(header: Header, block: str, number: int, path: str) -> Shape:
    """Return the shape of the first weight of a layer's part, whichever way it is written.

    Raises:
        WeightsError: when the file does not hold it.
    """
    position = 0
    for source, _, kind in BLOCKS[block]:
        if source == path:
            names = (f"{block}.{number}.{position}.{kind.weights[0]}", f"{block}.{number}.{dotted(path, 'vars.0')}")
            found = next((header.shapes[name] for name in names if name in header), None)
            if found is None or (len(found) != 4 and kind is CONV) or (len(found) != 2 and kind in (DENSE, MATRIX)):
                raise WeightsError(f"the file has no {names[0]} of the right kind, without which nothing can be told")
            return found
        position += len(kind.weights)
    raise AssertionError(path)


def check_kinds(header: Header) -> None:
    """Raise WeightsError when the weights of a layer that are known by their place stand in another order."""
    held: dict[tuple[str, str], dict[int, str]] = {}
    for name in header.shapes:
        block, number, *rest = *name.split("."), "", ""
        if block in BLOCKS and rest[0].isdigit():
            held.setdefault((block, number), {})[int(rest[0])] = rest[1]
    for (block, number), kinds in held.items():
        found = [kinds[place] for place in sorted(kinds)]
        due = [weight for *_, kind in BLOCKS[block] for weight in kind.weights][: len(found)]
        if found != due and sorted(found) == sorted(due):
            raise disordered(f"the layer {block}.{number}")


WAY = "pipelines.keras.from_keras puts it into a pipeline"


# -- the UNet -------------------------------------------------------------------------------------------------------


def unet_row(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the layers of a UNet in the order of their making: class in Keras, and path here."""
    last, layers = len(config["down_block_types"]) - 1, layers_of(config)
    yield "dense", "time_embedding.linear_1"
    yield "dense", "time_embedding.linear_2"
    yield "padded_conv2d", "conv_in"
    for level, kind in enumerate(config["down_block_types"]):
        yield from _level(f"down_blocks.{level}", layers[level], attends(kind))
        if level < last:
            yield "padded_conv2d", f"down_blocks.{level}.downsamplers.0.conv"
    yield "res_block", "mid_block.resnets.0"
    yield "spatial_transformer", "mid_block.attentions.0"
    yield "res_block", "mid_block.resnets.1"
    for level, kind in enumerate(config["up_block_types"]):
        yield from _level(f"up_blocks.{level}", layers[last - level] + 1, attends(kind))
        if level < last:
            yield "upsample", f"up_blocks.{level}.upsamplers.0.conv"
    yield "group_normalization", "conv_norm_out"
    yield "padded_conv2d", "conv_out"


def _level(path: str, layers: int, attention: bool) -> Iterator[tuple[str, str]]:
    for layer in range(layers):
        yield "res_block", f"{path}.resnets.{layer}"
        if attention:
            yield "spatial_transformer", f"{path}.attentions.{layer}"


def unet_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a UNet2DConditionModel with these options."""
    rules: list[Rule] = []
    count: Counter[str] = Counter()
    for block, path in unet_row(config):
        rules += below(f"{block}.{count[block]}", path, inside(block))
        count[block] += 1
    return Rules(rules)


def infer_unet(header: Header) -> Config:
    """Return the options of a UNet2DConditionModel that numbers of layers and shapes tell.

    Raises:
        WeightsError: when layers are missing.
    """
    held = Counter(layer_counts(header.shapes))
    levels = max(held["padded_conv2d"] - 1, held["upsample"] + 1)
    layers = max(1, round((held["res_block"] - 2 - levels) / (2 * levels)))
    kinds = [*["CrossAttnDownBlock2D"] * (levels - 1), "DownBlock2D"]
    config: Config = {
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in kinds[::-1]],
        "layers_per_block": layers,
    }
    due = Counter(block for block, _ in unet_row(config))
    wrong = [f"{held[block]} {block} of {number}" for block, number in due.items() if held[block] != number]
    if wrong:
        raise WeightsError(f"the UNet is not whole: the file has {', '.join(wrong)}")
    last = held["padded_conv2d"] - 1
    config["in_channels"] = shape_of(header, "padded_conv2d", 0, "conv2d")[2]
    config["out_channels"] = shape_of(header, "padded_conv2d", last, "conv2d")[3]
    out = "exit_flow.padded_conv2d.conv2d"
    widths = [shape_of(header, "res_block", level * layers, out)[3] for level in range(levels)]
    text = shape_of(header, "spatial_transformer", 0, f"{INNER}.attn2.to_k")[0]
    return config | {"block_out_channels": widths, "cross_attention_dim": text, "attention_head_dim": HEADS}


def recognise_unet(header: Header) -> Facts | None:
    """Return what the file of a UNet is.

    Raises:
        WeightsError: for a UNet of Stable Diffusion 2, or weights in another order.
    """
    if not any(header.has(mark) for mark in UNET_MARKS):
        return None
    check_kinds(header)
    project = header.shape("spatial_transformer.{}.2.kernel") or header.shape("spatial_transformer.{}.proj1.vars.0")
    if project is not None and len(project) == 2:
        raise WeightsError(f"the file holds a UNet of Stable Diffusion 2 in the layout of KerasCV; {ONLY_FIRST}")
    facts = Facts("keras_unet", "unet", prediction_type="epsilon", image_size=512, dtype=header.dtype)
    return facts.because(f"The file has the residual blocks of KerasCV's UNet of Stable Diffusion 1; {WAY}.")


ONLY_FIRST = "of that layout Stable Diffusion 1 is read, as in KerasCV's own converter"
UNET_MARKS = ("res_block.{}.0.gamma", "res_block.{}.0.kernel", "res_block.{}.entry_flow.group_normalization.vars.0")
UNET = Layout("UNet of KerasCV", "UNet2DConditionModel", UNET_MARKS, unet_rules, infer_unet)


# -- the text encoder -----------------------------------------------------------------------------------------------

VOCABULARY, SECOND = 49408, 1024
"""Words of CLIP, behind which learned ones stand, and width of the text encoder of Stable Diffusion 2."""


def text_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a text encoder."""
    places = {
        "clip_embedding.0": "text_model.embeddings",
        "clip_encoder_layer.{}": "text_model.encoder.layers.{}",
        "layer_normalization.0": "text_model.final_layer_norm",
    }
    return Rules([each for one, other in places.items() for each in below(one, other, inside(one.partition(".")[0]))])


def infer_text(header: Header) -> Config:
    """Return the options of a CLIPTextModel that shapes tell; learned words stand behind those of CLIP."""
    words = shape_of(header, "clip_embedding", 0, "token_embedding")
    positions = shape_of(header, "clip_embedding", 0, "position_embedding")
    inner = shape_of(header, "clip_encoder_layer", 0, "fc1")[1]
    known = min(words[0], VOCABULARY), words[1]
    config = text_options(known, positions, inner, header.count("clip_encoder_layer.{}"))
    return config | {"vocab_size": words[0], "projection_dim": words[1], "hidden_act": "quick_gelu"}


def recognise_text(header: Header) -> Facts | None:
    """Return what the file of a text encoder is.

    Raises:
        WeightsError: for the text encoder of Stable Diffusion 2, or weights in another order.
    """
    words = next((header.shape(mark) for mark in TEXT_MARKS if header.has(mark)), None)
    if words is None:
        return None
    check_kinds(header)
    if len(words) == 2 and words[1] == SECOND:
        raise WeightsError(
            f"the file holds the text encoder of Stable Diffusion 2 in the layout of KerasCV; {ONLY_FIRST}"
        )
    facts = Facts("keras_text_encoder", "text encoder", dtype=header.dtype)
    return facts.because(f"The file has the embedding of words of KerasCV's text encoder; {WAY}.")


TEXT_MARKS = ("clip_embedding.0.0.embeddings", "clip_embedding.0.token_embedding.vars.0")
TEXT = Layout("text encoder of KerasCV", "transformers.CLIPTextModel", TEXT_MARKS, text_rules, infer_text)
FAMILIES = (
    Family("keras_unet", recognise_unet, (Place("unet", "", UNET),), short="sd1"),
    Family("keras_text_encoder", recognise_text, (Place("text_encoder", "", TEXT),), short="sd1"),
)
