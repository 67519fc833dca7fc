"""Networks that see a picture beside the sample: what their pipelines refuse, and what a run may change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.pipelines import tiny

CALL = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "np", "seed": 3}
PICTURE = tiny.picture(1)


def build(name: str, pipe, **parts):
    """Return a pipeline of this library over the components of `pipe` that its class takes."""
    cls = getattr(langevin, name)
    known = tiny.constructor(cls)
    shared = {part: value for part, value in pipe.components.items() if part in known}
    built = cls(**{**shared, **parts})
    built.set_progress_bar_config(disable=True)
    return built


@pytest.fixture
def deep(pipe):
    estimator, reader = tiny.depth_estimator()
    parts = {"depth_estimator": estimator, "feature_extractor": reader, "unet": tiny.unets(in_channels=5)[1]}
    return build("StableDiffusionDepth2ImgPipeline", pipe, **parts)


@pytest.fixture
def instructed(pipe):
    unet = tiny.unets(in_channels=8)[1]
    return build("StableDiffusionInstructPix2PixPipeline", pipe, unet=unet, requires_safety_checker=False)


@pytest.fixture
def varied(pipe):
    parts = {"image_encoder": tiny.image_encoder(), "feature_extractor": tiny.feature_extractor()}
    return build("StableDiffusionImageVariationPipeline", pipe, **parts, requires_safety_checker=False)


@pytest.fixture
def enlarged(pipe):
    parts = {"unet": tiny.unets(in_channels=7, num_class_embeds=1000)[1]}
    parts["low_res_scheduler"] = tiny.scheduler(langevin, "DDPMScheduler")
    return build("StableDiffusionUpscalePipeline", pipe, **parts)


@pytest.fixture
def doubled(pipe):
    unet = tiny.unets(in_channels=8, out_channels=5, time_cond_proj_dim=128 + tiny.WIDTH)[1]
    scheduler = tiny.scheduler(langevin, "EulerDiscreteScheduler", prediction_type="sample")
    return build("StableDiffusionLatentUpscalePipeline", pipe, unet=unet, scheduler=scheduler)


# Depth ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (1, 1, 16, 16)])
def test_a_depth_map_may_lack_axes(deep, shape) -> None:
    depth = torch.arange(256.0).view(16, 16)
    expected = deep(**CALL, image=PICTURE, depth_map=depth).images
    assert np.array_equal(deep(**CALL, image=PICTURE, depth_map=depth.view(shape)).images, expected)
    assert not np.array_equal(deep(**CALL, image=PICTURE, depth_map=-depth.view(shape)).images, expected)


def test_a_flat_depth_map_is_a_depth_map(deep) -> None:
    assert np.isfinite(deep(**CALL, image=PICTURE, depth_map=torch.ones(16, 16)).images).all()


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        ([1.0], "`depth_map` is a list"),
        (torch.full((16, 16), float("nan")), "NaN"),
        (torch.zeros(16), r"\(16,\); it must be a tensor \(rows"),
        (torch.zeros(1, 3, 16, 16), r"\(1, 3, 16, 16\)"),
    ],
    ids=["list", "nan", "axes", "channels"],
)
def test_bad_depth_maps(deep, depth, words) -> None:
    with pytest.raises(InputError, match=words):
        deep(**CALL, image=PICTURE, depth_map=depth)


def test_without_an_estimator_a_depth_map_is_needed(deep) -> None:
    deep.depth_estimator = None
    assert np.isfinite(deep(**CALL, image=PICTURE, depth_map=torch.rand(16, 16)).images).all()
    with pytest.raises(ConfigError, match="no depth_estimator"):
        deep(**CALL, image=PICTURE)


# Instructions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["guidance_scale", "image_guidance_scale"])
def test_a_callback_can_switch_both_guidances_off(instructed, scale) -> None:
    rows = []
    instructed.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))

    def callback(inner, step, timestep, tensors):
        setattr(inner, f"_{scale}", 0.5)
        return tensors

    instructed(**CALL, image=PICTURE, callback_on_step_end=callback)
    assert rows == [3, 1, 1]


def test_a_network_that_embeds_guidance_is_asked_once(instructed) -> None:
    instructed.unet = tiny.unets(in_channels=8, time_cond_proj_dim=16)[1]
    rows = []
    instructed.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    instructed(**CALL, image=PICTURE)
    assert rows == [1, 1, 1]


def test_an_instruction_is_one_condition(instructed) -> None:
    with pytest.raises(InputError, match="without AND"):
        instructed(**{**CALL, "prompt": "a cat AND a dog"}, prompt_syntax="a1111", image=PICTURE)


# Variations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "words"), [([], "empty list"), ("cat.png", "`image` is a str"), (np.zeros((16, 16, 3)), "PIL picture")]
)
def test_what_is_no_picture_to_vary(varied, image, words) -> None:
    with pytest.raises(InputError, match=words):
        varied(image)


def test_a_tensor_is_one_picture_or_several(varied) -> None:
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 2, "output_type": "np", "seed": 1}
    one, two = varied(pixels[None], **call).images, varied(torch.stack([pixels, pixels]), **call).images
    assert one.shape[0] == 1 and two.shape[0] == 2 and np.abs(one[0] - two[0]).max() <= 1e-5
    assert np.array_equal(varied(pixels, **call).images, one)


def test_the_named_old_callback_is_checked_before_any_work(varied) -> None:
    seen = []
    varied(PICTURE, num_inference_steps=3, seed=1, callback=lambda k, t, x: seen.append((k, x.shape)), callback_steps=2)
    assert seen == [(0, (1, 4, 8, 8)), (2, (1, 4, 8, 8))]
    with pytest.raises(InputError, match="`callback` is a int"):
        varied(PICTURE, callback=3)


# Enlarging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"image": None}, "No `image`"),
        ({"noise_level": 351}, "trained for 0 to 350"),
        ({"noise_level": -1}, "`noise_level` is -1"),
        ({"noise_level": 0.5}, "whole number"),
        ({"clip_skip": -1}, "`clip_skip` is -1"),
    ],
)
def test_bad_enlargements(enlarged, call, words) -> None:
    with pytest.raises(InputError, match=words):
        enlarged(**{**CALL, "image": PICTURE, **call})


class Inverted:
    """A watermarker that turns pictures into their negative."""

    def apply_watermark(self, images):
        return -images


def test_a_watermarker_sees_the_decoded_picture(enlarged) -> None:
    plain = enlarged(**CALL, image=PICTURE).images
    enlarged.watermarker = Inverted()
    assert np.abs(1 - plain - enlarged(**CALL, image=PICTURE).images).max() <= 1e-5


def test_pictures_of_any_size_are_enlarged(enlarged, doubled) -> None:
    image = Image.new("RGB", (7, 5), (200, 30, 60))
    factor = enlarged.vae_scale_factor
    assert enlarged(**{**CALL, "output_type": "pil"}, image=image).images[0].size == (7 * factor, 5 * factor)
    assert doubled(**{**CALL, "output_type": "pil"}, image=image).images[0].size == (14, 10)


def test_embeddings_of_the_latent_upscaler(doubled) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = doubled(**CALL, image=latents).images
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    found = dict(zip(names, doubled.encode_prompt("a cat"), strict=True))
    call = {**CALL, "prompt": None, "image": latents}
    assert np.abs(plain - doubled(**call, **found).images).max() <= 1e-5
    alone = doubled.encode_prompt("a cat", do_classifier_free_guidance=False)
    assert torch.equal(alone[0], found["prompt_embeds"]) and alone[1] is alone[3] is None
    given = doubled.encode_prompt(None, **found)
    assert all(torch.equal(one, found[name]) for name, one in zip(names, given, strict=True))
    for ask in (doubled.encode_prompt, lambda prompt, **given: doubled(**call, **given)):
        with pytest.raises(InputError, match="`pooled_prompt_embeds`"):
            ask(None, prompt_embeds=found["prompt_embeds"])


def test_the_latent_upscaler_without_an_autoencoder_gives_latents(doubled) -> None:
    doubled.vae = None
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert doubled(**{**CALL, "output_type": "latent"}, image=latents).images.shape == (1, 4, 16, 16)
