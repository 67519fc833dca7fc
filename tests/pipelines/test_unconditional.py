"""DDPMPipeline, DDIMPipeline and PNDMPipeline: parity with the peer, and what they refuse."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import InputError
from tests.pipelines import tiny

LIMIT = 1e-4
NATIVE = {"DDPMPipeline": "DDPMScheduler", "DDIMPipeline": "DDIMScheduler", "PNDMPipeline": "PNDMScheduler"}


@pytest.fixture(scope="module")
def unets(tmp_path_factory) -> dict:
    """The same random network in both libraries."""
    folder = tmp_path_factory.mktemp("unet")
    theirs = tiny.pixel_unet(diffusers)
    theirs.save_pretrained(folder)
    return {"diffusers": theirs, "langevin": langevin.UNet2DModel.from_pretrained(folder)}


def build(library, pipeline: str, unets, scheduler):
    pipe = getattr(library, pipeline)(unet=unets[library.__name__], scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def difference(unets, pipeline: str, name: str, *, options: dict | None = None, seeds=7, **call) -> float:
    """Return the largest difference of the pictures of one call of both libraries."""
    pictures = []
    for library in (diffusers, langevin):
        scheduler = getattr(library, name)(**(options or {}))
        many = isinstance(seeds, list)
        generators = [torch.Generator().manual_seed(s) for s in seeds] if many else torch.Generator().manual_seed(seeds)
        pipe = build(library, pipeline, unets, scheduler)
        settings = {"batch_size": 2, "num_inference_steps": 4, "output_type": "np", **call}
        pictures.append(pipe(generator=generators, **settings).images)
    return float(np.abs(pictures[0] - pictures[1]).max())


@pytest.mark.parity
@pytest.mark.parametrize("seeds", [7, [1, 2]])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_ddpm(unets, name, seeds) -> None:
    assert difference(unets, "DDPMPipeline", name, seeds=seeds, num_inference_steps=10) <= LIMIT


@pytest.mark.parity
@pytest.mark.parametrize("name", tiny.SCHEDULERS)
@pytest.mark.parametrize("pipeline", ["DDIMPipeline", "PNDMPipeline"])
def test_ddim_and_pndm_turn_any_scheduler_into_their_own(unets, pipeline, name) -> None:
    assert difference(unets, pipeline, name, num_inference_steps=6) <= LIMIT
    assert difference(unets, pipeline, name, seeds=[1, 2]) <= LIMIT


@pytest.mark.parity
@pytest.mark.parametrize("call", [{"eta": 1.0}, {"eta": 0.5, "seeds": [3, 4]}, {"use_clipped_model_output": True}])
def test_ddim_options(unets, call) -> None:
    assert difference(unets, "DDIMPipeline", "DDIMScheduler", **call) <= LIMIT


@pytest.mark.parity
@pytest.mark.parametrize("pipeline", NATIVE)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_output_types(unets, pipeline, output_type) -> None:
    pictures = []
    for library in (diffusers, langevin):
        pipe = build(library, pipeline, unets, getattr(library, NATIVE[pipeline])())
        call = {"num_inference_steps": 4, "output_type": output_type, "return_dict": False}
        (images,) = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), **call)
        pictures.append(np.stack([np.asarray(image, dtype=np.float32) for image in images]))
    if (pipeline, output_type) == ("PNDMPipeline", "pt"):
        pictures[0] = pictures[0].transpose(0, 3, 1, 2)  # the peer's PNDMPipeline ignores "pt" and returns an array
    assert np.abs(pictures[0] - pictures[1]).max() <= (1 if output_type == "pil" else LIMIT)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_ddpm_scales_the_input_of_samplers_that_ask_for_it(unets, name) -> None:
    options = {"timestep_spacing": "leading"}
    scheduler = getattr(langevin, name)(**options)
    ours = build(langevin, "DDPMPipeline", unets, scheduler)(num_inference_steps=4, output_type="np", seed=0).images
    own_loop = getattr(diffusers, name)(**options)
    own_loop.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 8, 8, generator=generator) * own_loop.init_noise_sigma
    with torch.no_grad():
        for t in own_loop.timesteps:
            output = unets["diffusers"](own_loop.scale_model_input(x, t), t).sample
            x = own_loop.step(output, t, x, generator=generator).prev_sample
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - expected).max() <= LIMIT


class Still(torch.nn.Module):
    """The least that a pipeline asks of a network."""

    in_channels, sample_size = 3, (4, 6)

    def forward(self, x, t):
        return (torch.zeros_like(x),)


def test_no_argument_is_needed_and_any_module_serves() -> None:
    for pipeline, name in NATIVE.items():
        pipe = getattr(langevin, pipeline)(unet=Still(), scheduler=getattr(langevin, name)())
        pipe.set_progress_bar_config(disable=True)
        images = pipe().images
        assert len(images) == 1 and images[0].size == (6, 4)


@pytest.mark.parametrize("pipeline", NATIVE)
@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"output_type": "latent"}, "output_type"),
        ({"generator": [torch.Generator()], "batch_size": 2}, "one per image"),
        ({"seed": 1, "generator": torch.Generator()}, "one of them"),
    ],
)
def test_bad_calls(unets, pipeline, call, words) -> None:
    pipe = build(langevin, pipeline, unets, getattr(langevin, NATIVE[pipeline])())
    with pytest.raises(InputError, match=words):
        pipe(**call)


def test_a_picture_of_a_batch_can_be_made_alone(unets) -> None:
    pipe = build(langevin, "DDPMPipeline", unets, langevin.DDPMScheduler())
    batch = pipe(batch_size=3, seed=10, num_inference_steps=5, output_type="np").images
    alone = pipe(seed=12, num_inference_steps=5, output_type="np").images
    assert np.abs(batch[2] - alone[0]).max() <= 1e-5


def test_a_network_without_a_size_is_named() -> None:
    unet = langevin.UNet2DModel(**{**tiny.PIXELS, "sample_size": None})
    with pytest.raises(InputError, match=r"set `unet\.sample_size`"):
        langevin.DDPMPipeline(unet, langevin.DDPMScheduler())(num_inference_steps=1)
