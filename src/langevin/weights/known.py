"""Probes for networks: single files in their authors' layouts, and files in the layout of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from ..core.weights_io import Entry
from .detect import detect, families
from .found import CONTEXTS, Found
from .header import Header, matching

FAMILIES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "the Stable Diffusion XL refiner",
    "svd": "Stable Video Diffusion",
    "flux": "Flux",
    "sd3": "Stable Diffusion 3",
    "kandinsky": "Kandinsky 2",
}
"""Short name of a family -> its name in a sentence."""
SHORT = {
    "stable_diffusion": "sd1",
    "stable_diffusion_2": "sd2",
    "stable_diffusion_xl": "sdxl",
    "stable_diffusion_xl_refiner": "sdxl-refiner",
    "stable_video_diffusion": "svd",
    "keras_unet": "sd1",
    "keras_text_encoder": "sd1",
}
"""Family of a layout -> its short name; layouts of networks that several families share have none."""
KINDS = {"adapter": "t2i-adapter", "text_encoder": "text encoder"}
"""Component -> what a file with it alone is called, where that is not the component's name."""
TASKS = {9: "inpainting", 8: "instruction", 5: "depth", 7: "upscaling"}
"""Channels that a UNet takes -> what it was made for."""


def header_of(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Header:
    """Return names, shapes and types as the layouts want them."""
    shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
    return Header(shapes, {name: entry.dtype for name, entry in entries.items()}, metadata)


def count(entries: Mapping[str, Entry]) -> int:
    """Return the number of parameters."""
    return sum(prod(entry.shape) for entry in entries.values())


# -- the authors' layouts -------------------------------------------------------------------------------------------


def probe_original(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say what a checkpoint or network in its authors' layout is."""
    header = header_of(entries, metadata)
    facts = detect(header)
    if facts is None:
        return None
    family = next(family for family in families() if family.name == facts.family)
    places = {place.component: place.prefix_in(header) for place in family.places}
    held = {name: prefix for name, prefix in places.items() if prefix is not None}
    sizes = {name: count(_under(entries, prefix, held)) for name, prefix in held.items()}
    whole = len(held) > 1
    details: dict[str, Any] = {
        "task": facts.kind if facts.pipeline else None,
        "pipeline": facts.pipeline,
        "predicts": facts.prediction_type,
        "zero terminal SNR": facts.zero_snr or None,
        "resolution": facts.image_size,
        "components": sizes if whole else None,
        "also inside": sorted(set(matching(entries, family.ignored).values())),
        "absent": [name for name in places if name not in held and name in ESSENTIAL]
        if facts.pipeline and whole
        else None,
        "doubts": list(facts.doubts),
    }
    only = next(iter(held), facts.kind)
    kind = "checkpoint" if facts.pipeline and whole else KINDS.get(only, only)
    short = SHORT.get(facts.family) or family_by_context(entries)
    return Found(kind, short, "original", _told(details), facts.reasons)


ESSENTIAL = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Components without which a checkpoint makes no pictures."""


def family_by_context(entries: Mapping[str, Entry]) -> str | None:
    """Return the family whose text the cross-attentions of a network read, or None."""
    shapes = (tuple(entry.shape) for name, entry in entries.items() if name.endswith("attn2.to_k.weight"))
    return next((CONTEXTS.get(shape[1]) for shape in shapes if len(shape) == 2), None)


def _under(entries: Mapping[str, Entry], prefix: str, held: Mapping[str, str | None]) -> dict[str, Entry]:
    """Return the tensors of one component: those under its prefix and under no longer one."""
    longer = tuple(other for other in held.values() if other and len(other) > len(prefix))
    return {
        name: e for name, e in entries.items() if name.startswith(prefix) and not (longer and name.startswith(longer))
    }


def _told(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if value not in (None, [], {}, "")}


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


def probe_network(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say which network a file in the layout of this library holds; also of families that it does not load."""
    header = header_of(entries, metadata)
    for network in NETWORKS:
        if header.has(*network.marks):
            family = network.family or (family_by_context(entries) if network.kind in ("unet", "controlnet") else None)
            details = _told({"class": network.model, **(network.details(header) if network.details else {})})
            if network.model is None:
                details["doubts"] = ["This library has no class for it."]
            dialect = "diffusers" if network.model else None
            return Found(network.kind, family, dialect, details, (f"The file has {network.what}.",))
    return None
