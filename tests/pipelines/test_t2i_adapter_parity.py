"""Stable Diffusion with T2I-Adapters against the peer."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import langevin
from tests.pipelines import tiny
from tests.pipelines.controls import adapters, several
from tests.pipelines.pairs import difference, results, twins

pytestmark = pytest.mark.parity
LIMIT = 1e-4
NAME = "StableDiffusionAdapterPipeline"
EDGES = [tiny.picture(11), tiny.picture(12), tiny.picture(13), tiny.picture(14)]


@pytest.fixture(scope="module")
def pipes(peer_sd, our_sd):
    """Return a function from a number of adapters and their options to both pipelines."""

    def build(count: int = 1, **options):
        return twins(NAME, peer_sd, our_sd, adapter=several([adapters(seed=k, **options) for k in range(count)]))

    return build


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 1.0},
        {"adapter_conditioning_scale": 0.3},
        {"adapter_conditioning_scale": 0.0},
        {"negative_prompt": ["dog", ""], "clip_skip": 1},
        {"prompt": "a cat", "image": EDGES[0], "num_images_per_prompt": 3},
        {"seeds": [5, 6], "eta": 1.0},
        {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        {"height": 24, "width": 32},
        {"image": [tiny.picture(1, (32, 24)), tiny.picture(2, (32, 24))]},
        {"latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        {"timesteps": [900, 500, 201, 11], "scheduler_name": "DDPMScheduler"},
        {"sigmas": [12.0, 4.0, 1.0, 0.3, 0.0], "scheduler_name": "EulerDiscreteScheduler"},
    ],
    ids=lambda call: "-".join(call) or "plain",
)
def test_arguments(pipes, call) -> None:
    call = {"image": EDGES[:2], "scheduler_name": "DDIMScheduler", **call}
    assert difference(pipes(), call.pop("scheduler_name"), **call) <= LIMIT


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
def test_every_scheduler(pipes, name) -> None:
    assert difference(pipes(), name, image=EDGES[:2]) <= LIMIT


def test_grey_conditions(pipes) -> None:
    pictures = [tiny.picture(1, mode="L"), tiny.picture(2, mode="L")]
    assert difference(pipes(in_channels=1), image=pictures) <= LIMIT


def test_light_adapters(peer_sd, our_sd) -> None:
    light = adapters(adapter_type="light_adapter", channels=[32])
    more = {"adapter": light, "unet": tiny.unets(block_out_channels=(32, 32))}
    assert difference(twins(NAME, peer_sd, our_sd, **more), image=EDGES[:2]) <= LIMIT


@pytest.mark.parametrize("scales", [[0.5, 0.5], [0.2, 1.4], [0.0, 1.0]])
def test_several_adapters(pipes, scales) -> None:
    pair = pipes(2)
    call = {"prompt": "a cat", "adapter_conditioning_scale": scales}
    assert difference(pair, **call, image=EDGES[:2]) <= LIMIT
    assert difference(pair, **call | {"prompt": ["a cat", "a dog"]}, image=[EDGES[:2], EDGES[2:]]) <= LIMIT


def test_the_old_callback(pipes) -> None:
    seen = []
    call = {"image": EDGES[:2], "callback_steps": 2}
    pictures = results(pipes(), **call, callback=lambda step, timestep, latents: seen.append((step, int(timestep))))
    assert np.abs(pictures[0] - pictures[1]).max() <= LIMIT
    assert seen[:2] == seen[2:] and [step for step, _ in seen[:2]] == [0, 2]


@pytest.mark.parametrize("count", [1, 2])
def test_folders_go_both_ways(pipes, tmp_path, count) -> None:
    theirs, ours = pipes(count)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    scale = [0.6, 0.3] if count > 1 else 0.6
    call = {"image": EDGES[:count], "prompt": "a cat", "adapter_conditioning_scale": scale}
    for folder in ("theirs", "ours"):
        pair = [getattr(library, NAME).from_pretrained(tmp_path / folder) for library in (diffusers, langevin)]
        assert difference([theirs, pair[1]], **call) <= LIMIT
        assert difference([pair[0], ours], **call) <= LIMIT
    assert isinstance(langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs"), type(ours))
