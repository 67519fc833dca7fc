"""The UNet and the KL autoencoder as the authors of latent diffusion write them (Rombach et al. 2022, 2112.10752).

Their UNet numbers its blocks in one row, `input_blocks.0` to `output_blocks.N`, without regard to resolutions, so the
rules are made from the configuration: how many layers a level has, and which levels attend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from ...core.errors import WeightsError
from ...models.unets.layout import per_block
from ..family import Config, Layout
from ..header import Header
from ..ops import Squeeze
from ..rules import Rule, Rules, below, renamed, rule

RESNET = renamed(
    {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
)
"""The inside of a residual block. The inside of a transformer is the same on both sides."""
TIME = renamed(
    {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "time_embed.cond_proj": "time_embedding.cond_proj",
        "input_blocks.0.0": "conv_in",
    }
)
GROUPS, HEADS, HEAD_WIDTH = 32, 8, 64
"""What the authors' code fixes: norms over 32 groups, and transformers with 8 heads (SD 1) or heads 64 wide (later)."""


# -- the UNet -------------------------------------------------------------------------------------------------------


def attends(block: str) -> bool:
    """Tell whether a block of this name holds transformers."""
    return "CrossAttn" in block


def layers_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the number of residual blocks on the way down per level."""
    return per_block("layers_per_block", config.get("layers_per_block", 2), len(config["down_block_types"]))


def label_rules(config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules for what is embedded beside the time: sizes and pooled text, a vector, or a label."""
    if config.get("num_class_embeds") is not None:
        return [rule("label_emb", "class_embedding")]
    target = "add_embedding" if config.get("addition_embed_type") else "class_embedding"
    return renamed({"label_emb.0.0": f"{target}.linear_1", "label_emb.0.2": f"{target}.linear_2"})


def input_blocks(config: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield the number of each input block after the first, and the path of the layer or downsampler that it is."""
    numbers, levels = count(1), len(config["down_block_types"])
    for level, layers in enumerate(layers_of(config)):
        for layer in range(layers):
            yield next(numbers), f"down_blocks.{level}.{{}}.{layer}"
        if level < levels - 1:
            yield next(numbers), f"down_blocks.{level}.downsamplers.0.conv"


def encoder_rules(config: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of the embeddings, the way down and the middle, which a ControlNet shares."""
    rules = [*TIME, *label_rules(config)]
    for number, path in input_blocks(config):
        block = f"input_blocks.{number}"
        if "{}" not in path:
            rules.append(rule(f"{block}.0.op", path))
            continue
        rules += layer_rules(block, path, attends(config["down_block_types"][int(path.split(".")[1])]))
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None:
        inside = attends(config.get("mid_block_type", "UNetMidBlock2DCrossAttn"))
        rules += layer_rules("middle_block", "mid_block.{}.0", inside)
        rules += below(f"middle_block.{1 + inside}", "mid_block.resnets.1", RESNET)
    return rules


def layer_rules(block: str, path: str, attention: bool) -> list[Rule]:
    """Return the rules of a residual block and the transformer that may follow it."""
    rules = below(f"{block}.0", path.format("resnets"), RESNET)
    return [*rules, rule(f"{block}.1", path.format("attentions"))] if attention else rules


def unet_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a UNet2DConditionModel with these options."""
    rules = [*encoder_rules(config), *renamed({"out.0": "conv_norm_out", "out.2": "conv_out"})]
    numbers, levels = count(), len(config["up_block_types"])
    for level, (kind, layers) in enumerate(zip(config["up_block_types"], layers_of(config)[::-1], strict=True)):
        for layer in range(layers + 1):
            block, path = f"output_blocks.{next(numbers)}", f"up_blocks.{level}"
            rules += layer_rules(block, f"{path}.{{}}.{layer}", attends(kind))
        if level < levels - 1:
            rules.append(rule(f"{block}.{1 + attends(kind)}.conv", f"{path}.upsamplers.0.conv"))
    return Rules(rules)


def layer_names(config: Any, paths: Iterable[str]) -> dict[str, str]:
    """Return the authors' names of layers of a conditional UNet -> path; none for a network of another kind.

    Args:
        config: the network's options.
        paths: of its layers.
    """
    if not isinstance(config, Mapping) or "up_block_types" not in config or "cross_attention_dim" not in config:
        return {}
    rules = unet_rules(config).inverse
    moves = ((path, rules.find(path)) for path in paths)
    return {move.targets[0]: path for path, move in moves if move is not None and len(move.targets) == 1}


def read_levels(header: Header) -> list[list[dict[str, Any]]]:
    """Return, per level, what shapes tell of its layers: width, depth of the transformer or 0, and widths in it.

    Raises:
        WeightsError: when the numbering of the blocks has a gap.
    """
    levels: list[list[dict[str, Any]]] = [[]]
    for number in range(1, header.count("input_blocks.{}")):
        block = f"input_blocks.{number}"
        if header.has(f"{block}.0.op.weight"):
            levels.append([])
            continue
        out = header.shape(f"{block}.0.out_layers.3.weight")
        if out is None:
            raise WeightsError(f"the UNet has no weights of {block}, and has some of later blocks")
        levels[-1].append({"width": out[0], **read_transformer(header, f"{block}.1")})
    return levels


def read_transformer(header: Header, path: str) -> dict[str, Any]:
    """Return depth, context width and kind of projection of a transformer; a depth of 0 where there is none."""
    first = header.shape(f"{path}.transformer_blocks.0.attn1.to_k.weight")
    context = header.shape(f"{path}.transformer_blocks.0.attn2.to_k.weight")
    if first is None or context is None:
        return {"depth": 0}
    depth, project = header.count(f"{path}.transformer_blocks.{{}}"), header.shape(f"{path}.proj_in.weight")
    assert project is not None
    return {"depth": depth, "context": context[1], "linear": len(project) == 2, "self": first[1]}


def single(values: Sequence[Any]) -> Any:
    """Return the value that all levels share, or the list."""
    return values[0] if len(set(values)) == 1 else list(values)


def infer_encoder(header: Header) -> Config:
    """Return the options of the way down and the middle that shapes tell; a ControlNet shares them."""
    levels = read_levels(header)
    widths = [layers[0]["width"] for layers in levels]
    middle = read_transformer(header, "middle_block.1")
    depths = [layers[0]["depth"] for layers in levels]
    found = next((t for t in [*(layers[0] for layers in levels), middle] if t["depth"]), None)
    known = [depth for depth in depths if depth] or [middle["depth"] or 1]
    filled = [depth or single(known) if isinstance(single(known), int) else depth or 1 for depth in depths]
    if middle["depth"]:
        filled[-1] = middle["depth"]
    config: Config = {
        "in_channels": _need(header, "input_blocks.0.0.weight")[1],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle["depth"] else "UNetMidBlock2D",
        "block_out_channels": widths,
        "layers_per_block": single([len(layers) for layers in levels]),
        "transformer_layers_per_block": single(filled),
    }
    if found is not None:
        config["cross_attention_dim"] = found["context"]
        config["use_linear_projection"] = found["linear"]
        config["attention_head_dim"] = [width // HEAD_WIDTH for width in widths] if found["linear"] else HEADS
        crossed = [any(layer["depth"] and layer["self"] != layer["width"] for layer in layers) for layers in levels]
        config |= {"only_cross_attention": crossed} if any(crossed) else {}
    return {**config, **_infer_labels(header)}


def _infer_labels(header: Header) -> Config:
    """Return the options of the embeddings beside the time, as far as shapes tell them."""
    config: Config = {}
    table, vector = header.shape("label_emb.weight"), header.shape("label_emb.0.0.weight")
    if table is not None:
        config["num_class_embeds"] = table[0]
    if vector is not None:
        config["projection_class_embeddings_input_dim"] = vector[1]
    guided = header.shape("time_embed.cond_proj.weight")
    return config if guided is None else {**config, "time_cond_proj_dim": guided[1]}


def infer_unet(header: Header) -> Config:
    """Return the options of a UNet2DConditionModel that shapes tell."""
    config = infer_encoder(header)
    up = [kind.replace("Down", "Up") for kind in config["down_block_types"][::-1]]
    return {**config, "up_block_types": up, "out_channels": _need(header, "out.2.weight")[0]}


def _need(header: Header, name: str) -> tuple[int, ...]:
    shape = header.shape(name)
    if shape is None:
        raise WeightsError(f"the file has no {name}, so its configuration cannot be told; pass `config`")
    return shape


UNET = Layout("UNet of latent diffusion", "UNet2DConditionModel", ("input_blocks.0.0.weight",), unet_rules, infer_unet)


# -- the autoencoder ------------------------------------------------------------------------------------------------

STAGE = renamed(
    {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
)
ATTENTION = [
    rule("norm", "group_norm"),
    *renamed({"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}, Squeeze()),
]
"""Attention between pixels: convolutions of one pixel there, matrices here."""
HALVES = ("encoder.down", "decoder.up")
OUTER = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}


def half_rules(half: str, inner: str) -> list[Rule]:
    """Return the rules of what an encoder and a decoder have in common; `inner` is "down" or "up"."""
    stage = f"{inner}.{{}}"
    return [
        *renamed({f"{half}.{source}": f"{half}.{target}" for source, target in OUTER.items()}),
        *below(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", STAGE),
        *below(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", STAGE),
        *below(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", ATTENTION),
        *(below(f"{half}.{stage}.block.{{}}", f"{half}.{inner}_blocks.{{}}.resnets.{{}}", STAGE)),
        *(below(f"{half}.{stage}.attn.{{}}", f"{half}.{inner}_blocks.{{}}.attentions.{{}}", ATTENTION)),
        rule(f"{half}.{stage}.{inner}sample.conv", f"{half}.{inner}_blocks.{{}}.{inner}samplers.0.conv"),
    ]


def vae_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of an AutoencoderKL; the authors count the decoder's stages from the finest one."""
    rules = [*renamed({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})]
    rules += half_rules("encoder", "down")
    stages = len(config["block_out_channels"])
    for each in half_rules("decoder", "up"):
        if ".up.{}" not in each.sources[0]:
            rules.append(each)
            continue
        for stage in range(stages):
            source = each.sources[0].replace("up.{}", f"up.{stage}")
            target = each.targets[0].replace("up_blocks.{}", f"up_blocks.{stages - 1 - stage}")
            rules.append(Rule((source,), (target,), each.op))
    return Rules(rules)


def infer_vae(header: Header) -> Config:
    """Return the options of an AutoencoderKL that shapes tell."""
    stages = header.count("encoder.down.{}")
    widths = [_need(header, f"encoder.down.{stage}.block.0.conv2.weight")[0] for stage in range(stages)]
    down, up = ([header.has(f"{half}.{stage}.attn.0.q.weight") for stage in range(stages)] for half in HALVES)
    return {
        "in_channels": _need(header, "encoder.conv_in.weight")[1],
        "out_channels": _need(header, "decoder.conv_out.weight")[0],
        "latent_channels": _need(header, "decoder.conv_in.weight")[1],
        "block_out_channels": widths,
        "layers_per_block": header.count("encoder.down.0.block.{}"),
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in down],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in up[::-1]],
        **{f"use_{name}": False for name in ("quant_conv", "post_quant_conv") if not header.has(f"{name}.weight")},
        **({} if header.has("encoder.mid.attn_1.q.weight") else {"mid_block_add_attention": False}),
    }


TRAINING_OF_VAE = {r"loss\.": "the discriminator of the autoencoder's training", r"model_ema\.": "moving averages"}
VAE = Layout(
    "autoencoder of latent diffusion",
    "AutoencoderKL",
    ("encoder.down.0.block.0.conv1.weight",),
    vae_rules,
    infer_vae,
    TRAINING_OF_VAE,
)
