"""A reference picture steers the result, and leaves everything else as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion.guidance import NEGATIVE, POSITIVE
from langevin.diffusion.process import Level
from langevin.families.reference import Memory, Reference, referring
from langevin.nn.attention import Attention
from langevin.nn.processors import get_processors
from langevin.pipelines.reference import reference_only
from tests.no_reading import NoReading
from tests.pipelines import tiny
from tests.pipelines.controls import controlnets
from tests.pipelines.test_controlnet import call_of, step_of

CALL = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "np", "seed": 5}


def test_the_reference_has_an_effect_and_its_strength_says_how_much(pipe) -> None:
    plain = pipe(**CALL).images
    weak, full = (reference_only(pipe, tiny.picture(1), s)(**CALL).images for s in (1e-5, 1.0))
    other = reference_only(pipe, tiny.picture(2))(**CALL).images
    assert np.abs(weak - plain).max() <= 1e-3 < np.abs(full - plain).max()
    assert not np.array_equal(full, other)


def test_the_pipeline_and_its_network_stay_as_they_were(pipe) -> None:
    before, plain = get_processors(pipe.unet), pipe(**CALL).images
    made = reference_only(pipe, tiny.picture(1))
    first = made(**CALL).images
    assert get_processors(pipe.unet) == before and np.array_equal(pipe(**CALL).images, plain)
    assert np.array_equal(made(**CALL).images, first) and made.unet is pipe.unet
    assert made.config["_class_name"] == "StableDiffusionPipeline"
    with pytest.raises(ConfigError, match="did you mean 'prompt'"):
        made(**CALL, promt="a dog")
    with pytest.raises(InputError):
        made(num_inference_steps=0)
    assert get_processors(pipe.unet) == before


def test_threads_with_and_without_a_reference(pipe) -> None:
    made = reference_only(pipe, tiny.picture(1))
    runs = [pipe, made] * 3
    alone = [one(**CALL).images for one in runs[:2]]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: one(**CALL).images, runs))
    assert all(np.abs(images - alone[k % 2]).max() <= 1e-5 for k, images in enumerate(together))


def test_a_sample_that_attends_to_itself_twice_is_unchanged() -> None:
    torch.manual_seed(0)
    attention, x = Attention(16, heads=2, dim_head=8), torch.randn(2, 5, 16)
    network = torch.nn.ModuleList([attention])
    plain = attention(x)
    with torch.no_grad(), referring(network):
        memory = Memory(0.3)
        attention(x, reference=(writing := replace(memory, writing=True)))
        read = Memory(0.3, {attention: writing.tokens[attention][:1]})
        assert torch.allclose(attention(x, reference=read)[0], plain[0], atol=1e-6)
        assert not torch.allclose(attention(x, reference=read)[1], plain[1], atol=1e-3)


def test_with_other_tasks_and_controls(our_sd) -> None:
    net = controlnets()[1]
    pipe = langevin.StableDiffusionControlNetImg2ImgPipeline(
        **our_sd.components, controlnet=net, requires_safety_checker=False
    )
    pipe.scheduler = tiny.scheduler(langevin, "EulerAncestralDiscreteScheduler")
    pipe.set_progress_bar_config(disable=True)
    made = reference_only(pipe, tiny.picture(3))
    call = {**CALL, "image": tiny.picture(1), "control_image": tiny.picture(2), "guidance_scale": 1.0}
    assert not np.array_equal(made(**call).images, pipe(**call).images)


def test_the_host_never_waits_for_the_device(our_sd) -> None:
    reference = Reference(our_sd.unet, torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), 0.5)
    step = replace(step_of(0), level=Level(500, 0.6, 0.8))
    with torch.no_grad(), referring(our_sd.unet), NoReading():
        call = call_of()
        reference(call, step, (NEGATIVE, POSITIVE))
        our_sd.unet(call.sample, call.timestep, **call.cond.keywords(), **call.options)


def test_what_cannot_be_steered_is_named(pipe) -> None:
    with pytest.raises(InputError, match="strength"):
        reference_only(pipe, tiny.picture(1), 0)
    with pytest.raises(ConfigError, match="denoise latents"):
        reference_only(object(), tiny.picture(1))
    pipe.unet = tiny.unets(in_channels=9)[1]
    with pytest.raises(ConfigError, match="latents alone"):
        reference_only(pipe, tiny.picture(1))
