"""StableDiffusionPipeline against the peer: the same weights and seeds give the same pictures."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import langevin
from tests.pipelines import tiny
from tests.pipelines.pairs import PROMPTS
from tests.pipelines.pairs import difference as apart

pytestmark = pytest.mark.parity
LIMIT = 1e-4


def difference(theirs, mine, name: str, **call) -> float:
    """Return the largest difference of the pictures of one call of both pipelines."""
    return apart((theirs, mine), name, **call)



@pytest.mark.parametrize("name", tiny.SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_every_scheduler(peer_sd, our_sd, name, guidance) -> None:
    call = {"guidance_scale": guidance, "num_images_per_prompt": 2}
    assert difference(peer_sd, our_sd, name, **call) <= LIMIT


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
def test_every_scheduler_with_a_generator_per_picture(peer_sd, our_sd, name) -> None:
    call = {"num_images_per_prompt": 2, "seeds": [1, 2, 3, 2], "guidance_rescale": 0.7, "clip_skip": 1}
    assert difference(peer_sd, our_sd, name, **call) <= LIMIT


@pytest.mark.parametrize(
    "call",
    [
        {"negative_prompt": ["dog", ""], "guidance_rescale": 0.5},
        {"prompt": "a cat", "negative_prompt": "dog", "num_images_per_prompt": 3},
        {"clip_skip": 2, "guidance_scale": 3.0},
        {"eta": 0.6},
        {"eta": 1.0, "seeds": [4, 5]},
        {"height": 24, "width": 32},
        {"num_inference_steps": 1},
        {"prompt": "x " * 120, "negative_prompt": "y " * 100, "ours": {"long_prompt": "truncate"}},
    ],
    ids=lambda call: "-".join(call),
)
def test_arguments(peer_sd, our_sd, call) -> None:
    assert difference(peer_sd, our_sd, "DDIMScheduler", **call) <= LIMIT


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_given_latents(peer_sd, our_sd, name) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert difference(peer_sd, our_sd, name, latents=latents) <= LIMIT


def test_given_embeddings(peer_sd, our_sd) -> None:
    embeds, negative = our_sd.encode_prompt(PROMPTS, negative_prompt="dog")
    call = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative, "num_images_per_prompt": 2}
    assert difference(peer_sd, our_sd, "PNDMScheduler", **call) <= LIMIT
    assert difference(peer_sd, our_sd, "PNDMScheduler", prompt=None, prompt_embeds=embeds) <= LIMIT


def test_own_timesteps_and_sigmas(peer_sd, our_sd) -> None:
    assert difference(peer_sd, our_sd, "EulerDiscreteScheduler", timesteps=[900, 500, 201, 11]) <= LIMIT
    assert difference(peer_sd, our_sd, "EulerDiscreteScheduler", sigmas=[12.0, 4.0, 1.0, 0.3, 0.0]) <= LIMIT
    assert difference(peer_sd, our_sd, "DDPMScheduler", timesteps=[900, 500, 201, 11]) <= LIMIT


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(peer_sd, our_sd, output_type) -> None:
    pictures = []
    for library, pipe in ((diffusers, peer_sd), (langevin, our_sd)):
        pipe.scheduler = tiny.scheduler(library, "EulerDiscreteScheduler")
        call = {"prompt": PROMPTS, "num_inference_steps": 2, "output_type": output_type, "return_dict": False}
        images, flags = pipe(generator=torch.Generator().manual_seed(0), **call)
        assert flags is None
        pictures.append(images)
    theirs, ours = pictures
    assert type(theirs) is type(ours) and len(theirs) == len(ours) == 2
    if output_type == "pil":
        assert [image.size for image in theirs] == [image.size for image in ours]
    theirs, ours = (np.stack([np.asarray(image, dtype=np.float32) for image in images]) for images in pictures)
    scale = max(np.abs(theirs).max(), 1.0) if output_type == "latent" else 1.0
    assert np.abs(theirs - ours).max() <= (1 if output_type == "pil" else LIMIT * scale)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("names", [["latents"], ["latents", "prompt_embeds"]])
def test_callbacks_see_and_change_the_same_tensors(peer_sd, our_sd, name, names) -> None:
    seen: list[list] = []

    def callback(pipe, step, timestep, tensors):
        seen[-1].append((step, float(timestep), pipe.num_timesteps, {k: v.clone() for k, v in tensors.items()}))
        tensors["latents"] = tensors["latents"] * 0.9
        if "prompt_embeds" in tensors:
            tensors["prompt_embeds"] = tensors["prompt_embeds"] * 1.1
        return tensors

    pictures = []
    for library, pipe in ((diffusers, peer_sd), (langevin, our_sd)):
        seen.append([])
        pipe.scheduler = tiny.scheduler(library, name)
        call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names, "output_type": "np"}
        call |= {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0)}
        pictures.append(pipe(PROMPTS, **call).images)
    assert np.abs(pictures[0] - pictures[1]).max() <= LIMIT
    for theirs, ours in zip(*seen, strict=True):
        assert theirs[:3] == ours[:3]
        assert theirs[3].keys() == ours[3].keys()
        assert all(torch.allclose(theirs[3][k], ours[3][k], atol=LIMIT, rtol=1e-4) for k in theirs[3])


def test_encode_prompt(peer_sd, our_sd) -> None:
    for skip in (None, 1):
        theirs = peer_sd.encode_prompt(PROMPTS, "cpu", 2, True, ["dog", "x"], clip_skip=skip)
        ours = our_sd.encode_prompt(PROMPTS, "cpu", 2, True, ["dog", "x"], clip_skip=skip)
        assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_a_network_with_an_embedded_guidance_scale(peer_sd, our_sd) -> None:
    pictures, weights = [], {}
    for library, pipe in ((diffusers, peer_sd), (langevin, our_sd)):
        torch.manual_seed(0)
        unet = library.UNet2DConditionModel(**tiny.UNET, time_cond_proj_dim=16).eval()
        weights = unet.state_dict() if library is diffusers else weights
        unet.load_state_dict(weights)
        parts = {**pipe.components, "unet": unet, "scheduler": tiny.scheduler(library, "DDIMScheduler")}
        distilled = type(pipe)(**parts, requires_safety_checker=False)
        distilled.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": 2, "guidance_scale": 8.0, "output_type": "np"}
        pictures.append(distilled(PROMPTS, generator=torch.Generator().manual_seed(0), **call).images)
    assert np.abs(pictures[0] - pictures[1]).max() <= LIMIT
