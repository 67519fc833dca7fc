"""Stable Diffusion 1, 2 and XL with their tasks: how a file is recognised, and where it keeps its networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..family import CONFIGS, Facts, Family, Place
from ..header import Header
from . import clip, ldm

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SD1, SD2, XL, REFINER = (
    "stable_diffusion",
    "stable_diffusion_2",
    "stable_diffusion_xl",
    "stable_diffusion_xl_refiner",
)
TITLES = {SD1: "Stable Diffusion 1", SD2: "Stable Diffusion 2", XL: "Stable Diffusion XL", REFINER: "an SDXL refiner"}
CONTEXTS = {768: SD1, 1024: SD2, 2048: XL, 1280: REFINER}
"""Width of the text that the UNet attends to -> version."""


# -- which version --------------------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """Names that only one version has, and what they are."""

    pattern: str
    version: str
    what: str


MARKS = (
    Mark("conditioner.embedders.1.model.ln_final.weight", XL, "two text encoders, the second of OpenCLIP"),
    Mark("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", XL, "the text encoder of CLIP"),
    Mark("conditioner.embedders.0.model.ln_final.weight", REFINER, "one text encoder, that of OpenCLIP"),
    Mark("cond_stage_model.model.ln_final.weight", SD2, "a text encoder of OpenCLIP"),
    Mark("cond_stage_model.transformer.text_model.final_layer_norm.weight", SD1, "a text encoder of CLIP"),
    Mark("cond_stage_model.transformer.final_layer_norm.weight", SD1, "a text encoder of CLIP, in its older spelling"),
)


def find_unet(header: Header) -> str | None:
    """Return the prefix of a UNet of latent diffusion for pictures, or None."""
    for prefix in (UNET, ""):
        if not header.has(f"{prefix}input_blocks.0.0.weight", f"{prefix}time_embed.0.weight", f"{prefix}out.2.weight"):
            continue
        conv = header.shape(f"{prefix}input_blocks.0.0.weight")
        video = header.has(f"{prefix}input_blocks.1.0.time_stack.in_layers.0.weight")
        return None if video or conv is None or len(conv) != 4 else prefix
    return None


def version_of(header: Header, unet: Header) -> tuple[str, str, str | None] | None:
    """Return version, the reason, and a doubt or None; None when the UNet attends to no text."""
    for mark in MARKS:
        if mark.pattern in header:
            return mark.version, f"The file has {mark.what}, as {TITLES[mark.version]} has.", None
    shape = unet.shape("input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight")
    if shape is None:
        return None
    width = shape[1]
    if width in CONTEXTS:
        return CONTEXTS[width], f"The UNet attends to text {width} wide, as {TITLES[CONTEXTS[width]]} does.", None
    linear = len(unet.shape("input_blocks.{}.1.proj_in.weight") or ()) == 2
    guess = XL if unet.has("label_emb.0.0.weight") else SD2 if linear else SD1
    doubt = f"A text {width} wide is of no published version; it is read like {TITLES[guess]}. Pass `config`."
    return guess, "The file holds a UNet of latent diffusion and no text encoder.", doubt


# -- which task -----------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What a UNet is for: its kind, its pipeline class, and a preset that replaces that of the version."""

    kind: str
    pipeline: str | None
    preset: str | None = None


GENERATION = {
    SD1: Task("text-to-image", "StableDiffusionPipeline", "sd1"),
    SD2: Task("text-to-image", "StableDiffusionPipeline", "sd2"),
    XL: Task("text-to-image", "StableDiffusionXLPipeline", "sdxl"),
    REFINER: Task("refiner", "StableDiffusionXLImg2ImgPipeline", "sdxl-refiner"),
}
BESIDE: dict[tuple[str, int], tuple[Task, str]] = {
    (SD1, 9): (Task("inpainting", "StableDiffusionInpaintPipeline"), "a mask and the masked picture"),
    (SD2, 9): (Task("inpainting", "StableDiffusionInpaintPipeline"), "a mask and the masked picture"),
    (XL, 9): (Task("inpainting", "StableDiffusionXLInpaintPipeline"), "a mask and the masked picture"),
    (SD1, 8): (Task("instruction", "StableDiffusionInstructPix2PixPipeline"), "the picture to edit"),
    (XL, 8): (Task("instruction", "StableDiffusionXLInstructPix2PixPipeline"), "the picture to edit"),
    (SD2, 5): (Task("depth", "StableDiffusionDepth2ImgPipeline"), "a depth map"),
    (SD2, 7): (Task("upscaling", "StableDiffusionUpscalePipeline", "sd2-upscaling"), "the small picture"),
}
"""Version and input channels of the UNet -> the task, and what it is shown beside the latents."""
SIZES = {SD1: 512, SD2: 512, XL: 1024, REFINER: 1024}
UNCLIP = Task("unclip", "StableUnCLIPImg2ImgPipeline", "sd2-unclip")


def task_of(version: str, unet: Header, facts: Facts) -> Facts:
    """Return the facts with what the UNet is for."""
    channels = (unet.shape("input_blocks.0.0.weight") or (0, 0))[1]
    own = GENERATION[version]
    if version == SD2 and unet.has("label_emb.0.0.weight"):
        return _assigned(facts, UNCLIP, own, "It embeds a vector beside the time, the embedding of a picture.")
    if (version, channels) in BESIDE:
        task, what = BESIDE[version, channels]
        return _assigned(facts, task, own, f"Its UNet takes {channels} channels: the latents and {what}.")
    if channels != 4:
        doubt = (
            f"Its UNet takes {channels} channels, of no task that is known here; choose the pipeline class yourself."
        )
        return _assigned(facts, Task(f"{channels} channels", None), own, doubt)
    return _assigned(facts, own, own, "Its UNet takes the 4 channels of the latents and nothing beside them.")


def _assigned(facts: Facts, task: Task, own: Task, reason: str) -> Facts:
    return facts.because(reason, kind=task.kind, pipeline=task.pipeline, preset=task.preset or own.preset)


# -- what it predicts -----------------------------------------------------------------------------------------------

PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
STEPS = {"875000": "epsilon", "140000": "v_prediction"}
"""`global_step` of the two releases of Stable Diffusion 2.0 -> what they predict."""


def prediction_of(version: str, header: Header, facts: Facts) -> Facts:
    """Return the facts with what the network predicts and how large its pictures are."""
    facts = _by_default(version, header, facts)
    written = header.metadata.get("modelspec.prediction_type", "").lower()
    if written in PREDICTIONS:
        facts = facts.because(f"Its metadata says that it predicts {written}.", prediction_type=PREDICTIONS[written])
        facts = _settled(facts)
    if "v_pred" in header:
        facts = facts.because("The file carries the mark v_pred.", prediction_type="v_prediction")
    if "ztsnr" in header:
        facts = facts.because("The file carries the mark ztsnr.", zero_snr=True)
    side = header.metadata.get("modelspec.resolution", "").split("x")[0]
    if side.isdigit():
        facts = facts.because(f"Its metadata says that it was trained at {side} pixels.", image_size=int(side))
    return facts


def _settled(facts: Facts) -> Facts:
    """Return the facts without doubts about the prediction."""
    return replace(facts, doubts=tuple(d for d in facts.doubts if "prediction_type" not in d))


def _by_default(version: str, header: Header, facts: Facts) -> Facts:
    """Return the facts with what holds for the version and task where the file says nothing."""
    if facts.kind == "upscaling":
        return facts.because("The upscaler predicts v.", prediction_type="v_prediction", image_size=512)
    if facts.kind == "unclip":
        return facts.because("Stable unCLIP predicts v.", prediction_type="v_prediction", image_size=768)
    title = " ".join(header.metadata.get(f"modelspec.{name}", "") for name in ("title", "architecture")).lower()
    if "turbo" in title and version in (SD2, XL):
        preset = "sdxl-turbo" if version == XL else "sd2-turbo"
        reason = "Its metadata calls it turbo: distilled for one to four steps at 512 pixels (Sauer et al. 2023)."
        return facts.because(reason, kind="turbo", prediction_type="epsilon", image_size=512, preset=preset)
    if version != SD2 or facts.kind != "text-to-image":
        return replace(facts, prediction_type="epsilon", image_size=SIZES[version])
    return _second(header, facts, title)


def _second(header: Header, facts: Facts, title: str) -> Facts:
    """Return the facts of a text-to-image file of SD 2, of which two kinds have the same shapes."""
    kinds = {"epsilon": ("sd2", 512), "v_prediction": ("sd2-v", 768)}
    steps, named = header.metadata.get("global_step"), {"768-v": "v_prediction", "v2-512": "epsilon"}
    told = next((kind for words, kind in named.items() if words in title), None)
    if steps in STEPS:
        kind, reason = STEPS[steps], f"It was trained for {steps} steps, as the release that predicts {STEPS[steps]}."
    elif told is not None:
        kind, reason = told, f"Its metadata calls it {title.strip()!r}."
    else:
        preset, size = kinds["v_prediction"]
        doubt = (
            "Nothing in the file tells the 768-pixel kind of SD 2, which predicts v, from the 512-pixel base, which "
            "predicts noise; it is taken for the former. For the base pass prediction_type='epsilon', image_size=512."
        )
        return facts.doubting(doubt, prediction_type="v_prediction", image_size=size, preset=preset)
    return facts.because(reason, prediction_type=kind, image_size=kinds[kind][1], preset=kinds[kind][0])


# -- families -------------------------------------------------------------------------------------------------------


def recogniser(version: str) -> Callable[[Header], Facts | None]:
    """Return the function that recognises files of one version."""

    def recognise(header: Header) -> Facts | None:
        prefix = find_unet(header)
        if prefix is None:
            return None
        unet = header.under(prefix)
        found = version_of(header, unet)
        if found is None or found[0] != version:
            return None
        facts = Facts(version, "", dtype=header.dtype, reasons=(found[1],), doubts=(found[2],) if found[2] else ())
        return prediction_of(version, header, task_of(version, unet, facts))

    return recognise


def recognise_vae(header: Header) -> Facts | None:
    """Return the facts of a file that holds an autoencoder and no UNet."""
    prefix = next((p for p in (VAE, "") if header.has(f"{p}encoder.down.0.block.0.conv1.weight")), None)
    if prefix is None or find_unet(header) is not None:
        return None
    if len(header.shape(f"{prefix}decoder.conv_in.weight") or ()) != 4:
        return None
    if header.has(f"{prefix}decoder.up.0.block.0.time_stack.in_layers.0.weight"):
        return None
    facts = Facts("autoencoder_kl", "autoencoder", dtype=header.dtype, preset="sd1")
    facts = facts.because("The file holds the encoder and decoder of an autoencoder and no UNet.")
    if CONFIGS in header.metadata:
        return facts
    return facts.doubting("The scale of latents is not in the file; 0.18215 is that of Stable Diffusion 1 and 2.")


SCHEDULE = (
    r"(low_scale_model\.)?(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus\w+|posterior_\w+|lvlb_weights|logvar)$"
)
JUNK = {
    SCHEDULE: "tables of the noise schedule, which the scheduler makes",
    r"model_ema\.": "moving averages of the UNet; extract_ema=True takes them",
    r"(v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.\w+|scale_factor|denoiser\.\w+|global_step)$": "facts, not weights",
    r"embedding_manager\.": "words learned in training; load_textual_inversion reads them from their own file",
    r"(optimizer|optimizer_states|lr_schedulers|callbacks|loops)\.": "the state of training",
    r"cond_stage_model\.(logit_scale|model\.logit_scale)$": "belongs to CLIP's training",
    r"first_stage_model\.model_ema\.": "moving averages of the autoencoder",
}
DEPTH = {r"depth_model\.": "the depth estimator, which comes as a component of its own"}
NOISING = {r"noise_augmentor\.(?!data_mean$|data_std$)": "tables of the noise schedule, which the scheduler makes"}


def with_unet(*places: Place) -> tuple[Place, ...]:
    """Return the places of a file with a UNet and an autoencoder, and further ones."""
    return (Place("unet", UNET, ldm.UNET, ("",)), Place("vae", VAE, ldm.VAE), *places)


FAMILIES = (
    Family(
        XL,
        recogniser(XL),
        with_unet(
            Place("text_encoder", "conditioner.embedders.0.transformer.", clip.TEXT),
            Place("text_encoder_2", "conditioner.embedders.1.model.", clip.OPEN_TEXT),
        ),
        JUNK,
        "sdxl",
    ),
    Family(
        REFINER,
        recogniser(REFINER),
        with_unet(Place("text_encoder_2", "conditioner.embedders.0.model.", clip.OPEN_TEXT)),
        JUNK,
        "sdxl-refiner",
    ),
    Family(
        SD2,
        recogniser(SD2),
        with_unet(
            Place("text_encoder", "cond_stage_model.model.", clip.PENULTIMATE_TEXT),
            Place("image_encoder", "embedder.model.visual.", clip.OPEN_VISION),
            Place("image_normalizer", "noise_augmentor.", clip.NORMALIZER),
        ),
        {**JUNK, **DEPTH, **NOISING},
        "sd2",
    ),
    Family(
        SD1,
        recogniser(SD1),
        with_unet(Place("text_encoder", "cond_stage_model.transformer.", clip.TEXT)),
        JUNK,
        "sd1",
    ),
    Family("autoencoder_kl", recognise_vae, (Place("vae", "", ldm.VAE, (VAE,)),), JUNK),
)
