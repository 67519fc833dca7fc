"""Stable Diffusion XL by itself: runs in two parts, sizes, the watermark, folders, and errors that say what to do."""

from __future__ import annotations

import importlib.machinery
import inspect
import sys
import types

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin.core import imports
from langevin.core.errors import ConfigError, InputError, MissingDependencyError, NonFiniteError
from langevin.pipelines import watermark
from langevin.registry import SCHEDULERS
from tests.pipelines import tiny, tiny_xl
from tests.pipelines.conftest import quiet
from tests.pipelines.pairs import PROMPTS, twins

CALL = {"prompt": PROMPTS, "num_inference_steps": 10, "seed": 3}


def build(name: str, pipe, **more):
    """Return this library's pipeline `name` over the components of another."""
    known = tiny.constructor(getattr(langevin, name))
    parts = {part: value for part, value in {**pipe.components, **more}.items() if part in known}
    return quiet(getattr(langevin, name)(**parts))


@pytest.fixture
def text(xl):
    pipe = build("StableDiffusionXLPipeline", xl[1])
    pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
    return pipe


@pytest.fixture
def change(text):
    return build("StableDiffusionXLImg2ImgPipeline", text)


@pytest.fixture
def paint(text):
    return build("StableDiffusionXLInpaintPipeline", text)


def far(one, other) -> float:
    """Return the largest difference of two pictures or latents."""
    one, other = (np.asarray(x, dtype=np.float64) for x in (one, other))
    return float(np.abs(one - other).max())


# Two runs that share a schedule --------------------------------------------------------------------------------------


def schedulers() -> list[str]:
    """Return the schedulers that have a plan, which every latent pipeline can run."""
    names = [row.name for row in SCHEDULERS if row.name not in ("SchedulerMixin", "KarrasDiffusionSchedulers")]
    return [name for name in names if hasattr(getattr(langevin, name), "plan")]


def sampler(name: str):
    """Build a scheduler with the table of Stable Diffusion, where it has one."""
    cls = getattr(langevin, name)
    known = tiny.constructor(cls)
    options = {**tiny.TABLE, "steps_offset": 1, "clip_sample": False}
    return cls(**{option: value for option, value in options.items() if option in known})


NO_FRACTIONS = {
    "CMStochasticIterativeScheduler",
    "CosineDPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "IPNDMScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
}
"""Schedulers that tell networks a noise level or a time up to 1, so that no network of this family runs with them."""
MULTISTEP = {
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}
"""Samplers that remember earlier steps, so that the second run begins at a lower order."""


def in_two(text, fraction: float = 0.6, **call):
    """Return the latents of one run, and of two runs that share it."""
    call = {"prompt": "a cat", "num_inference_steps": 10, "output_type": "latent", **call}
    whole = text(**call, generator=torch.Generator().manual_seed(1)).images
    stream = torch.Generator().manual_seed(1)
    half = text(**call, denoising_end=fraction, generator=stream).images
    rest = build("StableDiffusionXLImg2ImgPipeline", text)
    return whole, rest(**call, image=half, denoising_start=fraction, generator=stream).images


@pytest.mark.parametrize("name", [name for name in schedulers() if name != "VQDiffusionScheduler"])
def test_two_runs_are_one_run_with_every_scheduler(text, name) -> None:
    text.scheduler = sampler(name)
    if name in NO_FRACTIONS:
        with pytest.raises(InputError, match="of this run"):
            in_two(text)
        return
    whole, both = in_two(text)
    assert torch.isfinite(both).all()
    if name not in MULTISTEP:
        assert torch.equal(whole, both)
    elif name != "SASolverScheduler":
        assert far(whole, both) < 0.3 * float(whole.abs().max())


@pytest.mark.parametrize("fraction", [0.05, 0.33, 0.7, 0.95])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverSinglestepScheduler"])
def test_a_run_may_be_cut_anywhere(text, name, fraction) -> None:
    text.scheduler = sampler(name)
    assert torch.equal(*in_two(text, fraction, num_inference_steps=24))


def test_inpainting_in_two_runs_is_one_run(paint) -> None:
    clean, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(2))
    call = {**CALL, "mask_image": tiny.hole(), "latents": noise, "output_type": "latent", "strength": 1.0}
    whole = paint(**call, image=clean).images
    half = paint(**call, image=clean, denoising_end=0.6).images
    assert torch.equal(half[..., :2, :], clean[..., :2, :])
    seen: list[torch.Tensor] = []
    watch = paint.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    both = paint(**call, image=half, denoising_start=0.6).images
    watch.remove()
    assert torch.equal(whole, both)
    assert torch.equal(both[..., :2, :], clean[..., :2, :])
    assert far(seen[0][:2, :, :2], clean[..., :2, :]) > 0.1


def test_the_order_of_the_cuts_is_checked(change) -> None:
    call = {"image": tiny.picture(), "prompt": "a cat"}
    with pytest.raises(InputError, match="No step"):
        change(**call, denoising_start=0.8, denoising_end=0.5)
    for value in (1.5, "0.5", True):
        with pytest.raises(InputError, match="denoising_start"):
            change(**call, denoising_start=value)


def test_denoising_start_replaces_strength(change) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = (change(**CALL, image=latents, denoising_start=0.5, strength=s).images for s in (0.0, 0.9))
    assert far(one[0], other[0]) == 0


def test_one_latent_is_handed_over_as_documented(text, change) -> None:
    latent = text(prompt="a cat", num_inference_steps=2, output_type="latent", seed=0).images[0]
    assert latent.shape == (4, 8, 8)
    image = change(prompt="a cat", image=latent[None, :], num_inference_steps=4, seed=0).images[0]
    assert image.size == (16, 16)


# Sizes ---------------------------------------------------------------------------------------------------------------


def told(pipe, **call) -> list[list[float]]:
    """Return the sizes that the network is told at the first call of a run."""
    seen: list[list[list[float]]] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["added_cond_kwargs"]["time_ids"].tolist()), with_kwargs=True
    )
    pipe(**{"prompt": "a cat", "num_inference_steps": 1, "output_type": "latent", "seed": 0, **call})
    hook.remove()
    return seen[0]


OWN = [16.0, 16.0, 0.0, 0.0, 16.0, 16.0]


@pytest.mark.parametrize("which", ["text", "change", "paint"])
@pytest.mark.parametrize(
    ("call", "negative", "positive"),
    [
        ({}, OWN, OWN),
        ({"original_size": [64, 48]}, [64, 48, *OWN[2:]], [64, 48, *OWN[2:]]),
        ({"crops_coords_top_left": (1, 2)}, [16, 16, 1, 2, 16, 16], [16, 16, 1, 2, 16, 16]),
        ({"negative_crops_coords_top_left": (3, 5)}, [16, 16, 3, 5, 16, 16], OWN),
        ({"negative_original_size": (64, 48)}, [64, 48, *OWN[2:]], OWN),
        ({"negative_target_size": (8, 9), "crops_coords_top_left": (1, 2)}, [*OWN[:4], 8, 9], [16, 16, 1, 2, 16, 16]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_negative_size_has_an_effect(request, which, call, negative, positive) -> None:
    more = {"text": {}, "change": {"image": tiny.picture()}, "paint": {"image": tiny.picture()}}[which]
    more |= {"mask_image": tiny.hole()} if which == "paint" else {}
    assert told(request.getfixturevalue(which), **call, **more) == [negative, positive]


def test_scores_stand_in_place_of_the_target_size(xl_refiner) -> None:
    pipe = build("StableDiffusionXLImg2ImgPipeline", xl_refiner[1], requires_aesthetics_score=True)
    call = {"image": tiny.picture(), "crops_coords_top_left": (3, 5), "aesthetic_score": 7.0}
    assert told(pipe, **call) == [[16, 16, 3, 5, 2.5], [16, 16, 3, 5, 7]]


def test_half_precision_leaves_the_sizes_as_they_are(text) -> None:
    half = build("StableDiffusionXLPipeline", text, unet=tiny_xl.unet(langevin).to(torch.bfloat16))
    assert told(half, original_size=(1023, 2049))[1][:2] == [1023, 2049]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("original_size", 1024),
        ("original_size", (1024,)),
        ("target_size", ("a", "b")),
        ("crops_coords_top_left", None),
        ("negative_target_size", (-1, 5)),
        ("negative_original_size", (float("nan"), 5)),
    ],
)
def test_sizes_are_pairs(text, name, value) -> None:
    with pytest.raises(InputError, match=name):
        text(prompt="a cat", **{name: value})


def test_a_network_for_other_sizes_is_named(text, xl_refiner) -> None:
    refiner = xl_refiner[1]
    with pytest.raises(ConfigError, match="requires_aesthetics_score=True"):
        build("StableDiffusionXLImg2ImgPipeline", refiner)(prompt="a", image=tiny.picture())
    with pytest.raises(ConfigError, match="StableDiffusionXLImg2ImgPipeline"):
        build("StableDiffusionXLPipeline", refiner)(prompt="a")
    scored = build("StableDiffusionXLImg2ImgPipeline", text, requires_aesthetics_score=True)
    with pytest.raises(ConfigError, match="requires_aesthetics_score=False"):
        scored(prompt="a", image=tiny.picture())
    other = tiny_xl.unet(langevin, projection_class_embeddings_input_dim=100)
    with pytest.raises(ConfigError, match="projection_dim is 52"):
        build("StableDiffusionXLPipeline", text, unet=other)(prompt="a")


# Prompts -------------------------------------------------------------------------------------------------------------


def test_the_second_prompt_may_be_one_for_all_and_is_read_by_the_refiner(text, xl_refiner) -> None:
    one, many = (text.encode_prompt(PROMPTS, prompt_2=p) for p in ("dog", ["dog", "dog"]))
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
    refiner = xl_refiner[1]
    found = (refiner.encode_prompt("a cat", prompt_2="dog"), refiner.encode_prompt("dog"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_negative_second_prompt_alone_is_read(text) -> None:
    first, second = (text.encode_prompt("a cat", **given)[1] for given in ({"negative_prompt_2": "dog"}, {}))
    assert first.abs().max() > 0 and second.abs().max() == 0
    assert torch.equal(first, text.encode_prompt("a cat", negative_prompt="", negative_prompt_2="dog")[1])


def test_long_and_weighted_prompts_have_two_encoders(text) -> None:
    long = text.encode_prompt("x " * 100 + "cat")
    assert long[0].shape == long[1].shape == (1, 154, tiny_xl.UNET["cross_attention_dim"])
    plain, heavy = (text.encode_prompt(p, prompt_syntax="a1111") for p in ("a cat", "a (cat:1.5)"))
    assert not torch.equal(plain[0], heavy[0]) and torch.equal(plain[2], heavy[2])
    call = {**CALL, "prompt": "[dog:cat:0.5] AND a tree", "prompt_2": "x", "prompt_syntax": "a1111"}
    assert len(text(**call).images) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": PROMPTS, "prompt_2": ["a"]}, "`prompt_2` has 1 texts for 2 prompts"),
        ({"prompt": "a", "prompt_2": 3}, "`prompt_2`"),
        ({"prompt": "a", "negative_prompt_2": ["a", "b"]}, "`negative_prompt_2` has 2"),
        ({"prompt_embeds": torch.zeros(1, 77, 56)}, "`pooled_prompt_embeds`"),
        ({"prompt_embeds": torch.zeros(1, 77, 56), "pooled_prompt_embeds": torch.zeros(2, 20)}, r"tensor \(1, width\)"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 77, 56)}, "`negative_pooled_prompt_embeds`"),
        ({"prompt_embeds": torch.zeros(1, 77, 56), "prompt_2": "a"}, "Both `prompt_2` and `prompt_embeds`"),
        ({"prompt_2": "a"}, "Neither `prompt` nor `prompt_embeds`"),
        ({"prompt": "a", "clip_skip": 4}, "`clip_skip` is 4"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["image"], "callback_on_step_end": print}, "image"),
    ],
)
def test_wrong_prompts_are_named(text, call, words) -> None:
    with pytest.raises(InputError, match=words):
        text(**call)


def test_absent_encoders_are_named(text) -> None:
    with pytest.raises(ConfigError, match="no text_encoder_2"):
        build("StableDiffusionXLPipeline", text, text_encoder_2=None, tokenizer_2=None)(prompt="a")
    with pytest.raises(ConfigError, match="only one of text_encoder and tokenizer"):
        build("StableDiffusionXLPipeline", text, tokenizer=None)(prompt="a")
    with pytest.raises(ConfigError, match="CLIPTextModelWithProjection"):
        build("StableDiffusionXLPipeline", text, text_encoder_2=tiny.text_encoder())(prompt="a")
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = build("StableDiffusionXLPipeline", text, **nothing)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, text.encode_prompt(PROMPTS), strict=True))
    call = {**CALL, "output_type": "np"}
    assert far(pipe(**{**call, "prompt": None}, **embeds).images, text(**call).images) == 0


def test_a_damaged_encoder_is_named(text) -> None:
    broken = tiny_xl.text_encoder_2()
    with torch.no_grad():
        broken.text_projection.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="text encoder 2"):
        build("StableDiffusionXLPipeline", text, text_encoder_2=broken)(prompt="a")


# Autoencoder and watermark -------------------------------------------------------------------------------------------


def test_a_half_precision_autoencoder_is_decoded_in_single_precision(text) -> None:
    vae = tiny_xl.vae(langevin).half()
    half = build("StableDiffusionXLPipeline", text, vae=vae)
    images = half(**CALL, output_type="pt").images
    exact = build("StableDiffusionXLPipeline", text, vae=tiny_xl.vae(langevin).half().float())(**CALL, output_type="pt")
    # Where the processor multiplies in float16, packed convolutions round a sum with what is added to it once.
    assert far(images, exact.images) < 1e-6 and vae.dtype == torch.float16
    half.upcast_vae()
    assert vae.dtype == torch.float32


class Stub(types.ModuleType):
    """Stands for the package: its encoder paints a corner and keeps what it was given."""

    class WatermarkEncoder:
        def set_watermark(self, kind: str, bits: list[int]) -> None:
            self.message = (kind, bits)

        def encode(self, picture: np.ndarray, method: str) -> np.ndarray:
            assert self.message[0] == "bits" and len(self.message[1]) == 48 and method == "dwtDct"
            assert picture.dtype == np.float32 and picture.shape[-1] == 3
            marked = picture.copy()
            marked[:4, :4, 0] = 255.0
            return marked


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setattr(watermark, "SMALLEST", 16 * 16)
    stub = Stub("imwatermark")
    stub.__spec__ = importlib.machinery.ModuleSpec("imwatermark", None)
    monkeypatch.setitem(sys.modules, "imwatermark", stub)
    for cache in (imports.is_available, watermark.announce):
        cache.cache_clear()
    yield stub
    for cache in (imports.is_available, watermark.announce):
        cache.cache_clear()




def test_the_watermark_is_there_by_default_where_the_package_is(text, package, caplog_ours) -> None:
    langevin.logging.set_verbosity_info()
    plain = build("StableDiffusionXLPipeline", text, add_watermarker=False)
    marked = [build("StableDiffusionXLPipeline", text, add_watermarker=wanted) for wanted in (None, True)]
    langevin.logging.set_verbosity_warning()
    assert sum("invisible watermark" in record.message for record in caplog_ours.records) == 1
    assert plain.watermark is None
    call = {"prompt": "a cat", "num_inference_steps": 1, "seed": 0, "output_type": "np"}
    clean = plain(**call).images
    for pipe in marked:
        images = pipe(**call).images
        assert (images[0, :4, :4, 2] == 1.0).all() and far(images[0, 4:], clean[0, 4:]) <= 1e-6
        latents = pipe(**{**call, "output_type": "latent"}).images
        assert far(latents, plain(**{**call, "output_type": "latent"}).images) == 0
        small = {**call, "height": 8}
        assert far(pipe(**small).images, plain(**small).images) == 0


def test_what_was_not_made_is_not_marked(text, package) -> None:
    picture = tiny.picture()
    call = {"prompt": "a cat", "image": picture, "num_inference_steps": 1, "seed": 0}
    change = build("StableDiffusionXLImg2ImgPipeline", text)
    assert far(change(**call, strength=0.0).images[0], picture) == 0
    paint = build("StableDiffusionXLInpaintPipeline", text)
    result = np.asarray(paint(**call, mask_image=tiny.hole()).images[0])
    assert (result[:6] == np.asarray(picture)[:6]).all()
    bare = np.asarray(paint(**call, mask_image=tiny.hole(), paste_back=False).images[0])
    assert (bare[:4, :4, 2] == 255).all()


def test_the_watermark_without_the_package(text) -> None:
    imports.is_available.cache_clear()
    assert build("StableDiffusionXLPipeline", text).watermark is None
    with pytest.raises(MissingDependencyError, match="pip install invisible-watermark"):
        build("StableDiffusionXLPipeline", text, add_watermarker=True)


def test_the_message_is_the_published_one() -> None:
    from diffusers.pipelines.stable_diffusion_xl import watermark as theirs

    assert tuple(theirs.WATERMARK_BITS) == watermark.BITS


# Folders -------------------------------------------------------------------------------------------------------------

CLASSES = {
    "StableDiffusionXLPipeline": {},
    "StableDiffusionXLImg2ImgPipeline": {"requires_aesthetics_score": False},
    "StableDiffusionXLInpaintPipeline": {"force_zeros_for_empty_prompt": False},
    "StableDiffusionXLInstructPix2PixPipeline": {"is_cosxl_edit": True},
}


@pytest.mark.parametrize("name", CLASSES)
def test_folders_go_both_ways(text, tmp_path, name) -> None:
    ours = build(name, text, **CLASSES[name])
    ours.save_pretrained(tmp_path / "ours")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(theirs).__name__ == name
    for option, value in CLASSES[name].items():
        assert theirs.config.get(option, getattr(theirs, option, None)) == value
    theirs.save_pretrained(tmp_path / "theirs")
    again = langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    own = langevin.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(again).__name__ == type(own).__name__ == name
    assert {option: own.config[option] for option in CLASSES[name]} == CLASSES[name]
    weights = zip(ours.unet.state_dict().values(), again.unet.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_a_refiner_shares_components_and_has_one_encoder(xl_folder, refiner_folder, tmp_path) -> None:
    base = langevin.DiffusionPipeline.from_pretrained(xl_folder, add_watermarker=False)
    assert type(base) is langevin.StableDiffusionXLPipeline
    shared = {"text_encoder_2": base.text_encoder_2, "vae": base.vae}
    refiner = langevin.DiffusionPipeline.from_pretrained(refiner_folder, **shared)
    assert type(refiner) is langevin.StableDiffusionXLImg2ImgPipeline
    assert refiner.text_encoder is None and refiner.tokenizer is None and refiner.vae is base.vae
    assert refiner.text_encoder_2 is base.text_encoder_2 and refiner.config["requires_aesthetics_score"]
    refiner.save_pretrained(tmp_path / "again")
    assert diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again").text_encoder is None
    for pipe in (base, refiner):
        quiet(pipe)
    call = {"prompt": "a cat", "num_inference_steps": 10, "seed": 0}
    latents = base(**call, denoising_end=0.8, output_type="latent").images
    assert refiner(**call, denoising_start=0.8, image=latents).images[0].size == (16, 16)


def test_the_output_class_is_where_it_is_documented() -> None:
    from langevin.pipelines.stable_diffusion import StableDiffusionXLPipelineOutput as one
    from langevin.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput as other

    assert one is other is langevin.StableDiffusionXLPipelineOutput


def test_documented_properties_belong_to_the_run(change) -> None:
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((pipe.denoising_end, pipe.denoising_start, pipe.guidance_scale, pipe.do_classifier_free_guidance))

    latents = torch.zeros(2, 4, 8, 8)
    change(**CALL, image=latents, denoising_start=0.5, denoising_end=0.9, callback_on_step_end=look)
    assert set(seen) == {(0.9, 0.5, 5.0, True)} and change.denoising_end is None


def test_an_instruction_reads_one_prompt(text) -> None:
    unet = tiny_xl.unet(langevin, in_channels=8)
    pipe = build("StableDiffusionXLInstructPix2PixPipeline", text, unet=unet)
    with pytest.raises(InputError, match="AND"):
        pipe(prompt="a AND b", image=tiny.picture(), prompt_syntax="a1111")
    with pytest.raises(ConfigError, match="takes 4 channels"):
        build("StableDiffusionXLInstructPix2PixPipeline", text)(prompt="a", image=tiny.picture())


def test_peers_and_ours_agree_in_two_runs(xl, xl_refiner) -> None:
    made = []
    bases = twins("StableDiffusionXLPipeline", *xl)
    refiners = twins("StableDiffusionXLImg2ImgPipeline", *xl_refiner, requires_aesthetics_score=(True, True))
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDPMScheduler"):
        made.clear()
        for library, base, refiner in zip((diffusers, langevin), bases, refiners, strict=True):
            base.scheduler, refiner.scheduler = (tiny.scheduler(library, name) for _ in range(2))
            call = {"prompt": PROMPTS, "num_inference_steps": 10, "generator": torch.Generator().manual_seed(5)}
            latents = base(**call, denoising_end=0.7, output_type="latent").images
            made.append(refiner(**call, denoising_start=0.7, image=latents, output_type="np").images)
        assert far(*made) <= 1e-4


def test_statistics_of_an_autoencoder_hold_for_every_task(text) -> None:
    """Pictures that are kept as a whole come back as the autoencoder makes them, whatever its statistics."""
    more = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 2.0, 0.5]}
    call = {**CALL, "image": tiny.picture(), "mask_image": tiny.hole(box=(0, 0, 0, 0)), "paste_back": False}
    made = [
        build("StableDiffusionXLInpaintPipeline", text, vae=tiny_xl.vae(langevin, **options))(**call, output_type="np")
        for options in ({}, more)
    ]
    assert far(made[0].images, made[1].images) <= 1e-4


def test_every_picture_that_is_large_enough_is_marked(package, monkeypatch) -> None:
    monkeypatch.setattr(watermark, "SMALLEST", 256 * 256)
    mark = watermark.Watermark()
    for height, width, marked in ((64, 1024, True), (1024, 64, True), (255, 256, False)):
        image = torch.full((1, 3, height, width), -1.0)
        assert (far(mark(image), image) > 0) is marked


def test_signatures_are_the_documented_ones() -> None:
    for name in CLASSES:
        for method in ("__init__", "__call__", "encode_prompt"):
            wanted, ours = (
                {k: p.default for k, p in inspect.signature(getattr(getattr(library, name), method)).parameters.items()}
                for library in (diffusers, langevin)
            )
            wanted = {k: tuple(v) if isinstance(v, list) else v for k, v in wanted.items() if k != "kwargs"}
            assert {k: v for k, v in ours.items() if k in wanted} == wanted
            assert [k for k in ours if k in wanted] == list(wanted)
