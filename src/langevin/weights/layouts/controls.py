"""ControlNets and T2I-Adapters in their authors' layouts (Zhang & Agrawala 2023, 2302.05543; Mou et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..family import Config, Facts, Family, Layout, Place
from ..header import Header
from ..rules import Rules, below, renamed, rule
from .ldm import encoder_rules, infer_encoder
from .stable_diffusion import CONTEXTS, SCHEDULE, TITLES

CONTROL = "control_model."
HINT = "input_hint_block"
PROJECTED = 256
"""Width of the embedding of each of SDXL's sizes."""


# -- ControlNet -----------------------------------------------------------------------------------------------------


def controlnet_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a ControlNetModel with these options."""
    last = 2 * len(config["conditioning_embedding_out_channels"]) - 1
    target = "controlnet_cond_embedding"
    hints = {f"{HINT}.{2 * number}": f"{target}.blocks.{number - 1}" for number in range(1, last)}
    outer = {f"{HINT}.0": f"{target}.conv_in", **hints, f"{HINT}.{2 * last}": f"{target}.conv_out"}
    outer |= {"zero_convs.{}.0": "controlnet_down_blocks.{}", "middle_block_out.0": "controlnet_mid_block"}
    return Rules([*encoder_rules(config), *renamed(outer)])


def infer_controlnet(header: Header) -> Config:
    """Return the options of a ControlNetModel that shapes tell."""
    numbers = header.numbers_at(f"{HINT}.{{}}")
    shapes = [header.shapes[f"{HINT}.{number}.weight"] for number in numbers]
    config = {
        **infer_encoder(header),
        "conditioning_channels": shapes[0][1],
        "conditioning_embedding_out_channels": [shapes[0][0], *(shape[0] for shape in shapes[2:-1:2])],
    }
    if "projection_class_embeddings_input_dim" in config:
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": PROJECTED}
    return config


CONTROLNET = Layout("ControlNet", "ControlNetModel", (f"{HINT}.0.weight",), controlnet_rules, infer_controlnet)
BESIDE = {
    r"model\.": "the UNet beside the ControlNet, which a pipeline loads from its own file",
    r"(first_stage_model|cond_stage_model|conditioner)\.": "the networks beside the ControlNet",
    SCHEDULE: "tables of the noise schedule",
}


def recognise_controlnet(header: Header) -> Facts | None:
    """Return what a ControlNet's file is, with or without the networks that it was trained beside."""
    prefix = next((p for p in (CONTROL, "") if header.has(f"{p}{HINT}.0.weight", f"{p}zero_convs.{{}}.0.weight")), None)
    if prefix is None:
        return None
    width = (header.shape(f"{prefix}input_blocks.{{}}.1.transformer_blocks.0.attn2.to_k.weight") or (0, 0))[1]
    version = TITLES.get(CONTEXTS.get(width, ""))
    facts = Facts("controlnet", "controlnet", dtype=header.under(prefix).dtype)
    facts = facts.because("The file has layers that read a control picture, and one closed convolution per block.")
    return facts if version is None else facts.because(f"It attends to text {width} wide, as {version} does.")


# -- T2I-Adapter ----------------------------------------------------------------------------------------------------


def adapter_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a T2IAdapter; in the full kinds the authors number the blocks of all stages in one row."""
    per_stage = config.get("num_res_blocks", 2)
    if config.get("adapter_type") == "light_adapter":
        inside = {"in_conv": "in_conv", "out_conv": "out_conv", "body.{}": "resnets.{}"}
        return Rules(below("body.{}", "adapter.body.{}", renamed(inside)))
    rules = [rule("conv_in", "adapter.conv_in")]
    for number in range(per_stage * len(config["channels"])):
        stage, layer = divmod(number, per_stage)
        names = ("block1", "block2")
        rules += renamed({f"body.{number}.{n}": f"adapter.body.{stage}.resnets.{layer}.{n}" for n in names})
        if layer == 0:
            rules.append(rule(f"body.{number}.in_conv", f"adapter.body.{stage}.in_conv"))
    return Rules(rules)


def infer_adapter(header: Header) -> Config:
    """Return the options of a T2IAdapter that shapes tell; pictures have one or three channels."""
    light, count = header.has("body.0.body.0.block1.weight"), header.count("body.{}")
    first = header.shapes["body.0.in_conv.weight" if light else "conv_in.weight"][1]
    factor = 16 if first % 256 == 0 else 8
    config: Config = {"in_channels": first // factor**2, "downscale_factor": factor}
    if light:
        widths = [header.shapes[f"body.{number}.out_conv.weight"][0] for number in range(count)]
        return config | {
            "adapter_type": "light_adapter", "channels": widths[:-1], "num_res_blocks": header.count("body.0.body.{}"),
        }  # fmt: skip
    starts = [number for number in header.numbers_at("body.{}") if f"body.{number}.in_conv.weight" in header]
    per_stage = starts[0] if starts else 2
    widths = [header.shapes[f"body.{number}.block2.weight"][0] for number in range(0, count, per_stage)]
    kind = "full_adapter_xl" if factor == 16 else "full_adapter"
    return config | {"adapter_type": kind, "channels": widths, "num_res_blocks": per_stage}


ADAPTER = Layout(
    "T2I-Adapter", "T2IAdapter", ("body.0.block1.weight", "body.0.in_conv.weight"), adapter_rules, infer_adapter
)


def recognise_adapter(header: Header) -> Facts | None:
    """Return what a T2I-Adapter's file is."""
    for prefix in ("", "adapter."):
        full = header.has(f"{prefix}conv_in.weight", f"{prefix}body.0.block1.weight")
        if full or header.has(f"{prefix}body.0.in_conv.weight", f"{prefix}body.0.body.0.block1.weight"):
            facts = Facts("t2i_adapter", "adapter", dtype=header.dtype)
            return facts.because("The file has a row of small residual blocks and nothing else.")
    return None


FAMILIES = (
    Family("controlnet", recognise_controlnet, (Place("controlnet", CONTROL, CONTROLNET, ("",)),), BESIDE),
    Family("t2i_adapter", recognise_adapter, (Place("adapter", "", ADAPTER, ("adapter.",)),)),
)
