"""Stable Video Diffusion as its authors write it: latent diffusion with layers over time (Blattmann et al. 2023).

Source: 2311.15127. The rules are those of the networks for pictures, and beside each layer stand those of its layer
over time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..family import Config, Facts, Family, Layout, Place
from ..header import Header
from ..rules import Rule, Rules, below, renamed, rule
from . import clip, ldm

IN_TIME = renamed({"time_pos_embed.0": "time_pos_embed.linear_1", "time_pos_embed.2": "time_pos_embed.linear_2"})
PROJECTED = 256
"""Width of the embedding of each of the three numbers: frames per second, motion, noise."""


def over_time(rules: Iterable[Rule], mixer: str) -> list[Rule]:
    """Return rules of a network for pictures as rules of the same network with layers over time.

    Args:
        mixer: what the authors call the weight between a residual block and its block over time.
    """
    found: dict[tuple[str, ...], Rule] = {}
    for each in rules:
        (source,), (target,) = each.sources, each.targets
        place, layer, inside = target.rpartition(".resnets.")
        if layer and "encoder." not in target:
            number, _, leaf = inside.partition(".")
            path, block = f"{place}.resnets.{number}", source.removesuffix(suffix(source))
            found[each.sources] = rule(source, f"{path}.spatial_res_block.{leaf}")
            inner = [*below("time_stack", "temporal_res_block", ldm.RESNET), rule(mixer, "time_mixer.mix_factor")]
            found |= {one.sources: one for one in below(block, path, inner)}
        else:
            found[each.sources] = each
            if ".attentions." in target and "mid_block.attentions.0." not in target:
                inner = [rule("time_stack", "temporal_transformer_blocks"), *IN_TIME]
                found |= {one.sources: one for one in below(source, target, inner)}
    return list(found.values())


def suffix(source: str) -> str:
    """Return the part of a residual block's rule that lies inside the block, with its dot."""
    inside = {name for each in (*ldm.RESNET, *ldm.STAGE) for name in each.sources}
    return max((f".{name}" for name in inside if source.endswith(f".{name}")), key=len)


def unet_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of a UNetSpatioTemporalConditionModel with these options."""
    told = {"addition_embed_type": "text_time", **config}
    return Rules(over_time(ldm.unet_rules(told).rules, "time_mixer.mix_factor"))


def infer_unet(header: Header) -> Config:
    """Return the options of a UNetSpatioTemporalConditionModel that shapes tell."""
    config = ldm.infer_unet(header)
    kinds = {name: [timed(kind) for kind in config[name]] for name in ("down_block_types", "up_block_types")}
    heads = [width // ldm.HEAD_WIDTH for width in config["block_out_channels"]]
    keep = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "transformer_layers_per_block")
    kept = {name: config[name] for name in (*keep, "cross_attention_dim", "projection_class_embeddings_input_dim")}
    return {**kept, **kinds, "num_attention_heads": heads, "addition_time_embed_dim": PROJECTED}


def timed(kind: str) -> str:
    """Return the name of a block with layers over time: CrossAttnDownBlock2D -> CrossAttnDownBlockSpatioTemporal."""
    return kind.replace("2D", "SpatioTemporal")


def vae_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of an AutoencoderKLTemporalDecoder."""
    rules = over_time(ldm.vae_rules(config).rules, "mix_factor")
    return Rules([*rules, rule("decoder.conv_out.time_mix_conv", "decoder.time_conv_out")])


def infer_vae(header: Header) -> Config:
    """Return the options of an AutoencoderKLTemporalDecoder that shapes tell."""
    config = ldm.infer_vae(header)
    keep = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block")
    return {name: config[name] for name in (*keep, "down_block_types")}


UNET = Layout(
    "UNet of Stable Video Diffusion", "UNetSpatioTemporalConditionModel", ldm.UNET.marks, unet_rules, infer_unet
)
VAE = Layout(
    "autoencoder of Stable Video Diffusion",
    "AutoencoderKLTemporalDecoder",
    ldm.VAE.marks,
    vae_rules,
    infer_vae,
    ldm.VAE.ignored,
)
STACK = "{}input_blocks.1.0.time_stack.in_layers.0.weight"


def recognise(header: Header) -> Facts | None:
    """Return what a file of Stable Video Diffusion is."""
    prefix = next((p for p in ("model.diffusion_model.", "") if STACK.format(p) in header), None)
    if prefix is None:
        return None
    facts = Facts("stable_video_diffusion", "image-to-video", "v_prediction", image_size=576, dtype=header.dtype)
    facts = facts.because("Its UNet has layers over time.", pipeline="StableVideoDiffusionPipeline")
    return facts.doubting("14 and 25 frames have the same shapes; pass num_frames to the call.")


FAMILIES = (
    Family(
        "stable_video_diffusion",
        recognise,
        (
            Place("unet", "model.diffusion_model.", UNET, ("",)),
            Place("vae", "first_stage_model.", VAE),
            Place("image_encoder", "conditioner.embedders.0.open_clip.model.visual.", clip.OPEN_VISION),
        ),
        {
            r"conditioner\.embedders\.0\.open_clip\.model\.(?!visual\.)": "the text half of the picture encoder's CLIP",
            r"conditioner\.embedders\.3\.encoder\.": "a second copy of the autoencoder's encoder",
            r"model_ema\.": "moving averages",
        },
        "svd",
    ),
)
