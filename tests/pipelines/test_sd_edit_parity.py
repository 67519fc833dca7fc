"""Stable Diffusion with networks that see a picture, against the peer: depth, instruction, variation, enlarging."""

from __future__ import annotations

import pytest
import torch

from tests.pipelines import tiny
from tests.pipelines.pairs import difference, twins

pytestmark = pytest.mark.parity
LIMIT = 1e-4
PICTURES = [tiny.picture(1), tiny.picture(2)]
SMALL = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def deep(peer_sd, our_sd):
    estimator, reader = tiny.depth_estimator()
    parts = {"depth_estimator": (estimator,) * 2, "feature_extractor": (reader,) * 2}
    return twins("StableDiffusionDepth2ImgPipeline", peer_sd, our_sd, unet=tiny.unets(in_channels=5), **parts)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"depth_map": torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(0))},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 2},
        {"strength": 1.0, "guidance_scale": 1.0},
        {"seeds": [1, 2], "negative_prompt": ["x", "dog"]},
    ],
    ids=lambda call: "-".join(call),
)
def test_depth(deep, call) -> None:
    assert difference(deep, "DDIMScheduler", **{"image": PICTURES, "strength": 0.5, **call}) <= LIMIT


@pytest.fixture(scope="module")
def instructed(peer_sd, our_sd):
    return twins("StableDiffusionInstructPix2PixPipeline", peer_sd, our_sd, unet=tiny.unets(in_channels=8))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 2, "guidance_scale": 4.0},
        {"image_guidance_scale": 1.0, "negative_prompt": ["dog", "x"]},
        {"image_guidance_scale": 0.5},
        {"guidance_scale": 1.0, "seeds": [1, 2]},
        {"latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"image": [tiny.picture(1, (24, 32)), tiny.picture(2, (24, 32))]},
    ],
    ids=lambda call: "-".join(call),
)
def test_instruction(instructed, name, call) -> None:
    assert difference(instructed, name, **{"image": PICTURES, **call}) <= LIMIT


@pytest.fixture(scope="module")
def varied(peer_sd, our_sd):
    parts = {"image_encoder": (tiny.image_encoder(),) * 2, "feature_extractor": (tiny.feature_extractor(),) * 2}
    return twins("StableDiffusionImageVariationPipeline", peer_sd, our_sd, safety_checker=(None, None), **parts)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"image": PICTURES[0], "num_images_per_prompt": 2},
        {"guidance_scale": 1.0, "height": 24, "width": 32},
        {"image": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "eta": 0.5},
    ],
    ids=lambda call: "-".join(call),
)
def test_variation(varied, call) -> None:
    assert difference(varied, "DDIMScheduler", prompt=..., **{"image": PICTURES, **call}) <= LIMIT


@pytest.fixture(scope="module")
def enlarged(peer_sd, our_sd):
    low = tiny.both("DDPMScheduler")
    unet = tiny.unets(in_channels=7, num_class_embeds=1000)
    # The peer writes this scale into the configuration of the autoencoder that it is given.
    vae = tiny.vaes(scaling_factor=0.08333)
    parts = {"low_res_scheduler": low, "vae": vae, "safety_checker": (None, None), "feature_extractor": (None, None)}
    return twins("StableDiffusionUpscalePipeline", peer_sd, our_sd, unet=unet, **parts)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 2},
        {"noise_level": 300, "guidance_scale": 1.0},
        {"seeds": [1, 2], "negative_prompt": ["dog", "x"], "clip_skip": 1},
        {"image": torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))},
        {"latents": torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))},
    ],
    ids=lambda call: "-".join(call),
)
def test_enlarging_four_times(enlarged, name, call) -> None:
    assert difference(enlarged, name, **{"image": PICTURES, **SMALL, **call}) <= LIMIT


@pytest.fixture(scope="module")
def doubled(peer_sd, our_sd):
    unet = tiny.unets(in_channels=8, out_channels=5, time_cond_proj_dim=128 + tiny.WIDTH)
    return twins("StableDiffusionLatentUpscalePipeline", peer_sd, our_sd, unet=unet)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 1.0},
        {"seeds": [1, 2], "negative_prompt": ["dog", "x"]},
        {"image": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"latents": torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))},
    ],
    ids=lambda call: "-".join(call),
)
@pytest.mark.parametrize("kind", ["sample", "epsilon"])
def test_enlarging_two_times(doubled, kind, call) -> None:
    options = {"scheduler": {"prediction_type": kind}, **SMALL}
    assert difference(doubled, "EulerDiscreteScheduler", **{"image": PICTURES, **options, **call}) <= LIMIT
