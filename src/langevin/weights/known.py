"""Probes for networks: single files in their authors' layouts, and files in the layout of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from ..core.weights_io import Entry
from .detect import detect
from .found import Found, family_by_context
from .header import Header, matching
from .layouts.stable_diffusion import BESIDE

COMPONENTS = {"text encoder": "text_encoder", "image encoder": "image_encoder", "t2i-adapter": "adapter"}
"""Kind of a network's file -> the component that it usually is, where that is another word."""
ESSENTIAL = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Components without which a checkpoint makes no pictures."""
TASKS = {channels: task.kind for (_, channels), (task, _) in BESIDE.items()}
"""Channels that a UNet takes -> what it was made for."""


# -- the authors' layouts -------------------------------------------------------------------------------------------


def probe_original(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say what a checkpoint or network in its authors' layout is."""
    header = Header.of(entries, metadata)
    found = detect(header)
    if found is None:
        return None
    family, facts = found
    held = family.networks(header)
    checkpoint = facts.pipeline is not None and len(held) > 1
    sizes = {name: sum(prod(header.shapes[each]) for each in network.names) for name, network in held.items()}
    lacking = [place.component for place in family.places if place.component not in held]
    details: dict[str, Any] = {
        "task": facts.kind if facts.pipeline else None,
        "pipeline": facts.pipeline,
        "predicts": facts.prediction_type,
        "zero terminal SNR": facts.zero_snr or None,
        "resolution": facts.image_size,
        "components": sizes if len(held) > 1 else None,
        "also inside": sorted(set(matching(entries, family.ignored).values())),
        "absent": [name for name in lacking if name in ESSENTIAL] if checkpoint else None,
    }
    only = next(iter(held), facts.kind)
    alone = {component: kind for kind, component in COMPONENTS.items()}
    kind = "checkpoint" if checkpoint else alone.get(only, only)
    short = family.short or family_by_context(header.shapes)
    return Found(kind, short, "original", details, facts.reasons, facts.doubts)


# -- the layout of this library -------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A network by the names that only it has.

    Attributes:
        kind: what it is.
        model: the class that takes it, or None where this library has none.
        what: what its names are, for the reason.
        marks: patterns, all of which it has; `{}` stands for a number.
        family: the family that alone has it.
        details: further facts by shape.
    """

    kind: str
    model: str | None
    what: str
    marks: tuple[str, ...]
    family: str | None = None
    details: Callable[[Header], dict[str, Any]] | None = None


def _of_unet(header: Header) -> dict[str, Any]:
    taken, given = header.shape("conv_in.weight") or (0, 0), header.shape("conv_out.weight") or (0,)
    context = header.shape("down_blocks.{}.attentions.{}.transformer_blocks.{}.attn2.to_k.weight")
    return {
        "task": TASKS.get(taken[1]) if context else None,
        "channels": f"{taken[1]} in, {given[0]} out",
        "context width": context[-1] if context else None,
    }


def _of_vae(header: Header) -> dict[str, Any]:
    shape = header.shape("decoder.conv_in.weight") or (0, 0)
    return {"latent channels": shape[1], "pixels per latent": 2 ** (header.count("encoder.down_blocks.{}") - 1)}


def _of_text(header: Header) -> dict[str, Any]:
    shape = header.shape("text_model.embeddings.token_embedding.weight") or (0, 0)
    return {"width": shape[1], "words": shape[0], "layers": header.count("text_model.encoder.layers.{}")}


def _of_control(header: Header) -> dict[str, Any]:
    shape = header.shape("controlnet_cond_embedding.conv_in.weight") or (0, 0)
    return {"channels of the control": shape[1], "context width": _of_unet(header)["context width"]}


TIMED = ("conv_in.weight", "time_embedding.linear_1.weight")
NETWORKS: Sequence[Network] = (
    Network(
        "controlnet",
        "ControlNetModel",
        "its layers that read a control picture",
        ("controlnet_cond_embedding.conv_in.weight",),
        details=_of_control,
    ),
    Network(
        "motion module",
        None,
        "layers over time",
        ("down_blocks.{}.motion_modules.{}.temporal_transformer.norm.weight",),
        family="animatediff",
    ),
    Network(
        "unet",
        "UNet2DConditionModel",
        "a UNet that reads embeddings of pictures",
        (*TIMED, "encoder_hid_proj.image_embeds.weight"),
        family="kandinsky",
        details=_of_unet,
    ),
    Network(
        "unet",
        "UNetSpatioTemporalConditionModel",
        "a UNet over space and time",
        (*TIMED, "down_blocks.{}.resnets.{}.temporal_res_block.conv1.weight"),
        family="svd",
        details=_of_unet,
    ),
    Network(
        "unet",
        "UNet2DConditionModel",
        "a UNet that attends to text",
        (*TIMED, "mid_block.attentions.0.transformer_blocks.{}.attn2.to_k.weight"),
        details=_of_unet,
    ),
    Network("unet", "UNet2DModel", "a UNet that attends to no text", (*TIMED, "conv_out.weight"), details=_of_unet),
    Network(
        "vae",
        "AutoencoderKL",
        "an encoder and a decoder with blocks of residual layers",
        ("encoder.conv_in.weight", "encoder.down_blocks.{}.resnets.{}.conv1.weight", "decoder.conv_in.weight"),
        details=_of_vae,
    ),
    Network(
        "vae",
        "AutoencoderTiny",
        "two rows of small convolutional blocks",
        ("encoder.layers.0.weight", "decoder.layers.0.weight"),
    ),
    Network("t2i-adapter", "T2IAdapter", "a row of small residual blocks", ("adapter.body.0.resnets.0.block1.weight",)),
    Network(
        "safety checker",
        "StableDiffusionSafetyChecker",
        "embeddings of what is to be hidden",
        ("concept_embeds", "special_care_embeds"),
    ),
    Network(
        "text encoder",
        "CLIPTextModelWithProjection",
        "CLIP's text encoder and its projection",
        ("text_model.embeddings.token_embedding.weight", "text_projection.weight"),
        details=_of_text,
    ),
    Network(
        "text encoder",
        "CLIPTextModel",
        "CLIP's text encoder",
        ("text_model.embeddings.token_embedding.weight",),
        details=_of_text,
    ),
    Network(
        "image encoder",
        "CLIPVisionModelWithProjection",
        "CLIP's picture encoder",
        ("vision_model.embeddings.class_embedding",),
    ),
    Network(
        "text encoder",
        "T5EncoderModel",
        "T5's encoder",
        ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ),
    Network("depth estimator", "DPTForDepthEstimation", "an estimator of depth", ("dpt.embeddings.cls_token",)),
    Network(
        "transformer",
        None,
        "the transformer of Flux",
        ("single_transformer_blocks.{}.attn.to_q.weight",),
        family="flux",
    ),
    Network("transformer", None, "the transformer of Flux", ("double_blocks.{}.img_attn.qkv.weight",), family="flux"),
    Network(
        "checkpoint",
        None,
        "the transformer of Flux",
        ("model.diffusion_model.double_blocks.{}.img_attn.qkv.weight",),
        family="flux",
    ),
    Network(
        "checkpoint",
        None,
        "the transformer of Stable Diffusion 3",
        ("model.diffusion_model.joint_blocks.{}.x_block.attn.qkv.weight",),
        family="sd3",
    ),
    Network(
        "upscaler",
        None,
        "layers of ESRGAN, which enlarges pictures without diffusion",
        ("conv_first.weight", "conv_body.weight"),
        family="esrgan",
    ),
    Network(
        "upscaler",
        None,
        "layers of ESRGAN, which enlarges pictures without diffusion",
        ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
        family="esrgan",
    ),
    Network("language model", None, "layers of a language model", ("model.layers.0.self_attn.q_proj.weight",)),
)
"""More special networks come first."""


CLASSES = {network.model: network.kind for network in NETWORKS if network.model is not None}
"""Class -> what its file is called."""


def probe_network(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say which network a file in the layout of this library holds; also of families that it does not load."""
    header = Header.of(entries, metadata)
    network = next((network for network in NETWORKS if header.has(*network.marks)), None)
    if network is None:
        return None
    conditional = network.kind in ("unet", "controlnet")
    family = network.family or (family_by_context(header.shapes) if conditional else None)
    details = {"class": network.model, **(network.details(header) if network.details else {})}
    dialect, doubts = ("diffusers", ()) if network.model else (None, ("This library has no class for it.",))
    return Found(network.kind, family, dialect, details, (f"The file has {network.what}.",), doubts)
