"""Picture to picture and inpainting with Stable Diffusion against the peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.pipelines import tiny
from tests.pipelines.pairs import difference, results, twins

pytestmark = pytest.mark.parity
LIMIT = 1e-4
PLAIN = {"ours": {"paste_back": False}}


@pytest.fixture(scope="module")
def changed(peer_sd, our_sd):
    return twins("StableDiffusionImg2ImgPipeline", peer_sd, our_sd)


@pytest.fixture(scope="module")
def painted(peer_sd, our_sd):
    return twins("StableDiffusionInpaintPipeline", peer_sd, our_sd)


@pytest.fixture(scope="module")
def seeing(peer_sd, our_sd):
    """Inpainting with a network that sees the mask and the masked picture."""
    return twins("StableDiffusionInpaintPipeline", peer_sd, our_sd, unet=tiny.unets(in_channels=9))


PICTURES = [tiny.picture(1), tiny.picture(2)]


STARTS = [(name, s) for name in tiny.SCHEDULERS for s in (0.25, 0.5, 1.0) if (name, s < 1) != ("PNDMScheduler", True)]
"""Schedulers and strengths; PNDM skips a step in the peer when it starts from a picture."""


@pytest.mark.parametrize(("name", "strength"), STARTS)
def test_img2img_with_every_scheduler(changed, name, strength) -> None:
    assert difference(changed, name, image=PICTURES, strength=strength) <= LIMIT


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 3},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 2, "seeds": [3, 4]},
        {"seeds": [5, 6]},
        {"guidance_scale": 1.0},
        {"negative_prompt": ["dog", ""], "clip_skip": 1},
        {"eta": 0.5},
        {"image": [tiny.picture(1, (32, 24)), tiny.picture(2, (32, 24))]},
        {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        {"image": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"image": np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)},
        {"timesteps": [900, 500, 201, 11], "scheduler_name": "DDPMScheduler"},
        {"sigmas": [12.0, 4.0, 1.0, 0.3, 0.0], "scheduler_name": "EulerDiscreteScheduler", "strength": 1.0},
    ],
    ids=lambda call: "-".join(call),
)
def test_img2img_arguments(changed, call) -> None:
    call = {"image": PICTURES, "strength": 0.5, "scheduler_name": "DDIMScheduler", **call}
    assert difference(changed, call.pop("scheduler_name"), **call) <= LIMIT


@pytest.mark.parametrize(("name", "strength"), STARTS)
@pytest.mark.parametrize("which", ["painted", "seeing"])
def test_inpainting_with_every_scheduler(request, which, name, strength) -> None:
    call = {"image": PICTURES, "mask_image": tiny.hole(), "strength": strength}
    assert difference(request.getfixturevalue(which), name, **call, **PLAIN) <= LIMIT


@pytest.mark.parametrize("which", ["painted", "seeing"])
@pytest.mark.parametrize(
    "call",
    [
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 3},
        {"seeds": [5, 6]},
        {"guidance_scale": 1.0, "strength": 0.75},
        {"height": 24, "width": 32},
        {"mask_image": [tiny.hole(), tiny.hole(box=(0, 0, 5, 9))]},
        {"latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        {"mask_image": torch.ones(1, 16, 16)},
        {"eta": 1.0},
    ],
    ids=lambda call: "-".join(call),
)
def test_inpainting_arguments(request, which, call) -> None:
    call = {"image": PICTURES, "mask_image": tiny.hole(), **call}
    assert difference(request.getfixturevalue(which), "DDIMScheduler", **call, **PLAIN) <= LIMIT


def test_the_masked_latents_may_be_given(seeing) -> None:
    masked = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {"image": PICTURES, "mask_image": tiny.hole(), "masked_image_latents": masked}
    assert difference(seeing, "DDIMScheduler", **call, **PLAIN) <= LIMIT


@pytest.mark.parametrize("box", [(30, 30, 40, 36), (0, 0, 9, 40)])
def test_inpainting_of_a_crop(painted, box) -> None:
    size = (64, 48)
    call = {"prompt": "a cat", "image": tiny.picture(3, size), "mask_image": tiny.hole(size, box), "output_type": "pil"}
    theirs, ours = results(painted, "DDIMScheduler", **call, padding_mask_crop=4, **PLAIN)
    assert np.abs(theirs - ours).max() <= 1.01 / 255
