"""Stable Diffusion XL against the peer: the same weights and seeds give the same pictures."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import langevin
from tests.pipelines import tiny, tiny_xl
from tests.pipelines.pairs import PROMPTS, difference, results, twins

pytestmark = pytest.mark.parity
LIMIT = 1e-4


@pytest.fixture(scope="module")
def texts(xl):
    return twins("StableDiffusionXLPipeline", *xl)


@pytest.fixture(scope="module")
def changed(xl):
    return twins("StableDiffusionXLImg2ImgPipeline", *xl)


@pytest.fixture(scope="module")
def painted(xl):
    return twins("StableDiffusionXLInpaintPipeline", *xl)


def encoded(pipe, **more):
    """Return the arguments of a call with embeddings in place of prompts."""
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {"prompt": None, **dict(zip(names, pipe.encode_prompt(PROMPTS, **more), strict=True))}


# Text to picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_every_scheduler(texts, name, guidance) -> None:
    assert difference(texts, name, guidance_scale=guidance, num_images_per_prompt=2) <= LIMIT


ARGUMENTS = [
    {"prompt_2": ["dog x", "cat y"]},
    {"negative_prompt": ["dog", ""]},
    {"negative_prompt": "dog", "negative_prompt_2": "x y"},
    {"clip_skip": 1, "negative_prompt": "dog"},
    {"eta": 1.0, "seeds": [4, 5]},
    {"guidance_rescale": 0.7},
    {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (32, 40)},
    {
        "prompt": "a cat",
        "negative_original_size": (64, 48),
        "negative_crops_coords_top_left": (3, 5),
        "negative_target_size": (32, 40),
    },
]


@pytest.mark.parametrize(
    "call",
    [
        *ARGUMENTS,
        {"height": 24, "width": 32, "seeds": [1, 2, 3, 2], "num_images_per_prompt": 2},
        {"num_inference_steps": 1, "guidance_scale": 0.0},
        {"latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))},
        {"output_type": "pt"},
        {"denoising_end": 0.6, "output_type": "latent"},
    ],
    ids=lambda call: "-".join(call),
)
def test_text_to_picture(texts, call) -> None:
    assert difference(texts, "DDIMScheduler", **call) <= LIMIT


def test_every_row_of_a_batch_is_told_its_own_negative_sizes(texts) -> None:
    call = {"negative_original_size": (64, 48), "negative_target_size": (32, 40), "output_type": "np"}
    call |= {"num_inference_steps": 3}
    many = texts[1](PROMPTS, seed=[1, 2], **call).images
    alone = texts[1](PROMPTS[1], seed=[2], **call).images
    assert np.abs(many[1] - alone[0]).max() <= 1e-5


def test_own_timesteps_and_sigmas(texts) -> None:
    assert difference(texts, "EulerDiscreteScheduler", timesteps=[900, 500, 201, 11]) <= LIMIT
    assert difference(texts, "EulerDiscreteScheduler", sigmas=[12.0, 4.0, 1.0, 0.3, 0.0]) <= LIMIT


def test_given_embeddings(texts) -> None:
    embeds = encoded(texts[1], negative_prompt="dog")
    assert difference(texts, "DDIMScheduler", **embeds, num_images_per_prompt=2) <= LIMIT
    positive = {name: value for name, value in embeds.items() if "negative" not in name}
    assert difference(texts, "DDIMScheduler", **positive) <= LIMIT


def test_the_empty_text_where_zeros_are_not_forced(xl) -> None:
    pipes = twins("StableDiffusionXLPipeline", *xl)
    for pipe in pipes:
        pipe.register_to_config(force_zeros_for_empty_prompt=False)
    theirs, ours = results(pipes)
    assert np.abs(theirs - ours).max() <= LIMIT
    assert np.abs(ours - results(twins("StableDiffusionXLPipeline", *xl))[1]).max() > LIMIT


def test_encode_prompt(texts) -> None:
    for call in (
        {},
        {"prompt_2": ["x", "y"], "negative_prompt": "dog", "num_images_per_prompt": 2, "clip_skip": 2},
        {"do_classifier_free_guidance": False},
    ):
        theirs, ours = (pipe.encode_prompt(PROMPTS, **call) for pipe in texts)
        assert len(theirs) == len(ours) == 4
        for a, b in zip(theirs, ours, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    "names", [["latents"], ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]], ids=len
)
def test_callbacks_see_and_change_the_same_tensors(texts, names) -> None:
    seen: list[list] = []

    def callback(pipe, step, timestep, tensors):
        seen[-1].append((step, float(timestep), {name: value.clone() for name, value in tensors.items()}))
        return {name: value * (1.1 if name != "latents" else 0.9) for name, value in tensors.items()}

    pictures = []
    for library, pipe in zip((diffusers, langevin), texts, strict=True):
        seen.append([])
        pipe.scheduler = tiny.scheduler(library, "DDIMScheduler")
        call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names, "output_type": "np"}
        call |= {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0)}
        pictures.append(pipe(PROMPTS, **call).images)
    assert np.abs(pictures[0] - pictures[1]).max() <= LIMIT
    for theirs, ours in zip(*seen, strict=True):
        assert theirs[:2] == ours[:2] and theirs[2].keys() == ours[2].keys()
        assert all(torch.allclose(theirs[2][k], ours[2][k], atol=LIMIT, rtol=1e-4) for k in theirs[2])


def test_a_network_with_an_embedded_guidance_scale(xl) -> None:
    unets = [tiny_xl.unet(library, time_cond_proj_dim=16) for library in (diffusers, langevin)]
    unets[1].load_state_dict(unets[0].state_dict())
    pipes = twins("StableDiffusionXLPipeline", *xl, unet=unets)
    for steps in (1, 4):
        assert difference(pipes, "LCMScheduler", num_inference_steps=steps, guidance_scale=8.0) <= LIMIT
    scales = torch.tensor([0.0, 0.15, 0.7])
    for width in (16, 33):
        theirs, ours = (pipe.get_guidance_scale_embedding(scales, width) for pipe in pipes)
        assert ours.shape == (3, width) and torch.allclose(theirs, ours, atol=LIMIT)
    assert pipes[1].get_guidance_scale_embedding(scales, 16, torch.float16).dtype == torch.float16


def test_turbo(texts) -> None:
    call = {"guidance_scale": 0.0, "scheduler": {"timestep_spacing": "trailing"}}
    for steps in (1, 4):
        assert difference(texts, "EulerAncestralDiscreteScheduler", num_inference_steps=steps, **call) <= LIMIT


# Picture to picture --------------------------------------------------------------------------------------------------

PICTURES = [tiny.picture(1), tiny.picture(2)]
STARTS = [(name, s) for name in tiny.SCHEDULERS for s in (0.25, 0.5, 1.0) if (name, s < 1) != ("PNDMScheduler", True)]
"""Schedulers and strengths; PNDM skips a step in the peer when it starts from a picture."""


@pytest.mark.parametrize(("name", "strength"), STARTS)
def test_picture_to_picture_with_every_scheduler(changed, name, strength) -> None:
    assert difference(changed, name, image=PICTURES, strength=strength) <= LIMIT


@pytest.mark.parametrize(
    "call",
    [
        *(call for call in ARGUMENTS if "negative_target_size" not in call),
        {"prompt": "a cat", "image": PICTURES[0], "negative_original_size": (64, 48), "negative_target_size": (32, 40)},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 3},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 2, "seeds": [3, 4]},
        {"seeds": [5, 6], "num_inference_steps": 10, "strength": 0.3},
        {"guidance_scale": 1.0},
        {"image": [tiny.picture(1, (32, 24)), tiny.picture(2, (32, 24))]},
        {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        {"image": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"denoising_start": 0.4, "image": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"denoising_start": 0.3, "denoising_end": 0.8, "num_inference_steps": 10},
        {"denoising_end": 0.8, "num_inference_steps": 10, "output_type": "latent"},
        {"timesteps": [900, 500, 201, 11], "scheduler_name": "DDPMScheduler"},
        {"sigmas": [12.0, 4.0, 1.0, 0.3, 0.0], "scheduler_name": "EulerDiscreteScheduler", "strength": 1.0},
    ],
    ids=lambda call: "-".join(call),
)
def test_picture_to_picture(changed, call) -> None:
    call = {"image": PICTURES, "strength": 0.5, "scheduler_name": "DDIMScheduler", **call}
    assert difference(changed, call.pop("scheduler_name"), **call) <= LIMIT


def test_picture_to_picture_with_embeddings(changed) -> None:
    embeds = encoded(changed[1], negative_prompt="dog")
    assert difference(changed, image=PICTURES, strength=0.5, **embeds) <= LIMIT


@pytest.fixture(scope="module")
def refined(xl_refiner):
    return twins("StableDiffusionXLImg2ImgPipeline", *xl_refiner, requires_aesthetics_score=(True, True))


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.0},
        {"prompt": "a cat", "image": PICTURES[0], "negative_prompt": "dog", "num_images_per_prompt": 2},
        {"denoising_start": 0.8, "image": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"original_size": (64, 48), "negative_original_size": (32, 40), "negative_crops_coords_top_left": (3, 5)},
    ],
    ids=lambda call: "-".join(call),
)
def test_refiner(refined, call) -> None:
    call = {"image": PICTURES, "num_inference_steps": 10, **call}
    assert difference(refined, "EulerDiscreteScheduler", **call) <= LIMIT


STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 2.0, 0.5]}


@pytest.mark.parametrize("which", ["text", "picture"])
def test_an_autoencoder_with_statistics(xl, which) -> None:
    pair = [tiny_xl.vae(library, **STATISTICS) for library in (diffusers, langevin)]
    pair[1].load_state_dict(pair[0].state_dict())
    name = "StableDiffusionXLPipeline" if which == "text" else "StableDiffusionXLImg2ImgPipeline"
    call = {} if which == "text" else {"image": PICTURES, "strength": 0.5}
    assert difference(twins(name, *xl, vae=pair), **call) <= LIMIT


# Inpainting ----------------------------------------------------------------------------------------------------------

PLAIN = {"ours": {"paste_back": False}}


@pytest.fixture(scope="module")
def seeing(xl):
    """Inpainting with a network that sees the mask and the masked picture."""
    pair = [tiny_xl.unet(library, in_channels=9) for library in (diffusers, langevin)]
    pair[1].load_state_dict(pair[0].state_dict())
    return twins("StableDiffusionXLInpaintPipeline", *xl, unet=pair)


@pytest.mark.parametrize(("name", "strength"), STARTS)
@pytest.mark.parametrize("which", ["painted", "seeing"])
def test_inpainting_with_every_scheduler(request, which, name, strength) -> None:
    call = {"image": PICTURES, "mask_image": tiny.hole(), "strength": strength}
    assert difference(request.getfixturevalue(which), name, **call, **PLAIN) <= LIMIT


@pytest.mark.parametrize("which", ["painted", "seeing"])
@pytest.mark.parametrize(
    "call",
    [
        *(call for call in ARGUMENTS if "negative_target_size" not in call),
        {"prompt": "a cat", "image": PICTURES[0], "negative_original_size": (64, 48), "negative_target_size": (32, 40)},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 3},
        {"seeds": [5, 6]},
        {"guidance_scale": 1.0},
        {"height": 24, "width": 32},
        {"mask_image": [tiny.hole(), tiny.hole(box=(0, 0, 5, 9))]},
        {"latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), "strength": 1.0},
        {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        {"denoising_end": 0.7, "num_inference_steps": 10, "output_type": "latent"},
    ],
    ids=lambda call: "-".join(call),
)
def test_inpainting(request, which, call) -> None:
    call = {"image": PICTURES, "mask_image": tiny.hole(), "strength": 0.5, **call}
    assert difference(request.getfixturevalue(which), "DDIMScheduler", **call, **PLAIN) <= LIMIT


@pytest.mark.parametrize("call", [{}, {"denoising_end": 0.8}])
def test_inpainting_goes_on_with_a_picture(seeing, call) -> None:
    call |= {"image": PICTURES, "mask_image": tiny.hole(), "denoising_start": 0.3, "num_inference_steps": 10}
    assert difference(seeing, "DDIMScheduler", **call, **PLAIN) <= LIMIT


@pytest.mark.parametrize("box", [(30, 30, 40, 36), (0, 0, 9, 40)])
def test_inpainting_of_a_crop(painted, box) -> None:
    size = (64, 48)
    call = {"prompt": "a cat", "image": tiny.picture(3, size), "mask_image": tiny.hole(size, box), "output_type": "pil"}
    call["strength"] = 0.75
    theirs, ours = results(painted, "DDIMScheduler", **call, padding_mask_crop=4, **PLAIN)
    assert np.abs(theirs - ours).max() <= 1.01 / 255


def test_the_masked_latents_may_be_given(seeing) -> None:
    masked = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {"image": PICTURES, "mask_image": tiny.hole(), "masked_image_latents": masked, "strength": 0.5}
    assert difference(seeing, "DDIMScheduler", **call, **PLAIN) <= LIMIT


def test_latents_are_inpainted_on(painted) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"image": latents, "mask_image": tiny.hole(), "num_inference_steps": 10, "strength": 0.5}
    assert difference(painted, "DDIMScheduler", **call, **PLAIN) <= LIMIT


# Instructions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "cosxl"])
def edited(request, xl):
    pair = [tiny_xl.unet(library, in_channels=8) for library in (diffusers, langevin)]
    pair[1].load_state_dict(pair[0].state_dict())
    return twins("StableDiffusionXLInstructPix2PixPipeline", *xl, unet=pair, is_cosxl_edit=(request.param,) * 2)


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
def test_instructions_with_every_scheduler(edited, name) -> None:
    assert difference(edited, name, image=PICTURES) <= LIMIT


@pytest.mark.parametrize(
    "call",
    [
        {"prompt_2": ["dog x", "cat y"], "negative_prompt": ["x", "z"], "negative_prompt_2": ["y", ""]},
        {"image_guidance_scale": 3.0, "guidance_rescale": 0.6},
        {"guidance_scale": 1.0},
        {"image_guidance_scale": 0.5},
        {"height": 24, "width": 32},
        {"image": [tiny.picture(1, (40, 24)), tiny.picture(2, (40, 24))]},
        {"prompt": "a cat", "image": PICTURES[0], "num_images_per_prompt": 2, "seeds": [1, 2]},
        {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (32, 40)},
        {"latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"denoising_end": 0.6, "output_type": "latent"},
        {"eta": 0.5},
    ],
    ids=lambda call: "-".join(call),
)
def test_instructions(edited, call) -> None:
    assert difference(edited, "DDIMScheduler", **{"image": PICTURES, **call}) <= LIMIT
