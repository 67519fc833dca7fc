"""Stable Diffusion with ControlNets against the peer."""

from __future__ import annotations

from itertools import product

import diffusers
import numpy as np
import pytest
import torch

import langevin
from langevin.pipelines.control_images import make_inpaint_condition
from tests.pipelines import tiny
from tests.pipelines.controls import controlnets, several
from tests.pipelines.pairs import difference, results, twins

pytestmark = pytest.mark.parity
LIMIT = 1e-4
PLAIN = {"ours": {"paste_back": False}}
EDGES = [tiny.picture(11), tiny.picture(12), tiny.picture(13), tiny.picture(14)]
PICTURES = [tiny.picture(1), tiny.picture(2)]
TASKS = {
    "text": ("StableDiffusionControlNetPipeline", {}, "image"),
    "image": ("StableDiffusionControlNetImg2ImgPipeline", {"image": PICTURES, "strength": 0.75}, "control_image"),
    "inpaint": (
        "StableDiffusionControlNetInpaintPipeline",
        {"image": PICTURES, "mask_image": tiny.hole(), **PLAIN},
        "control_image",
    ),
}


@pytest.fixture(scope="module")
def pipes(peer_sd, our_sd):
    """Return a function from a task, a number of ControlNets and options to both pipelines and the task's arguments."""

    def build(task: str, count: int = 1, unet=None, **options):
        name, call, control = TASKS[task]
        more = {"controlnet": several([controlnets(seed=k, **options) for k in range(count)])}
        more |= {"unet": unet} if unet else {}
        return twins(name, peer_sd, our_sd, **more), call, control

    return build


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 1.0},
        {"controlnet_conditioning_scale": 0.3},
        {"controlnet_conditioning_scale": 0.0},
        {"guess_mode": True},
        {"guess_mode": True, "guidance_scale": 1.0},
        {"control_guidance_start": 0.25, "control_guidance_end": 0.8},
        {"control_guidance_start": 0.5},
        {"negative_prompt": ["dog", ""], "clip_skip": 1},
        {"prompt": "a cat", "picture": 0, "num_images_per_prompt": 3},
        {"prompt": "a cat", "picture": 0, "num_images_per_prompt": 2, "seeds": [3, 4]},
        {"seeds": [5, 6], "eta": 1.0},
        {"picture": 0},
        {"picture": np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)},
        {"picture": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        {"height": 24, "width": 32},
    ],
    ids=lambda call: "-".join(call) or "plain",
)
def test_arguments(pipes, task, call) -> None:
    pair, given, control = pipes(task)
    call = {**given, **call}
    picture = call.pop("picture", slice(2))
    call[control] = EDGES[picture] if isinstance(picture, (int, slice)) else picture
    if call.get("prompt") == "a cat" and control != "image":
        call["image"] = PICTURES[0]
        if task == "inpaint" and "seeds" in call:
            call["image"] = PICTURES[:1] * 2  # of one picture, the peer draws the latents from the first stream alone
    assert difference(pair, **call) <= LIMIT


@pytest.mark.parametrize(("task", "name"), product(TASKS, tiny.SCHEDULERS))
def test_every_scheduler(pipes, task, name) -> None:
    pair, given, control = pipes(task)
    call = {**given, control: EDGES[:2], "control_guidance_end": 0.7}
    if (task, name) == ("image", "PNDMScheduler"):
        call["strength"] = 1.0
    assert difference(pair, name, **call) <= LIMIT


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"controlnet_conditioning_scale": [0.4, 1.3]},
        {"controlnet_conditioning_scale": [0.0, 1.0]},
        {"control_guidance_start": [0.0, 0.5], "control_guidance_end": 0.8},
        {"control_guidance_end": [0.3, 1.0], "guess_mode": True},
    ],
    ids=lambda call: "-".join(call) or "plain",
)
def test_several_networks(pipes, task, call) -> None:
    pair, given, control = pipes(task, 2)
    if control != "image":
        given = {**given, "image": PICTURES[0]}
    assert difference(pair, **given, **call, prompt="a cat", **{control: EDGES[:2]}) <= LIMIT


def test_several_networks_and_several_prompts(pipes) -> None:
    pair, _, _ = pipes("text", 2)
    assert difference(pair, image=[EDGES[:2], EDGES[2:]]) <= LIMIT
    assert difference(pair, image=EDGES[:2]) <= LIMIT


@pytest.mark.parametrize("size", [(32, 24), (33, 27)])
@pytest.mark.parametrize("task", TASKS)
def test_the_size_follows_the_picture(pipes, task, size) -> None:
    pair, given, control = pipes(task)
    call = {**given, control: tiny.picture(11, size), "prompt": "a cat"}
    if task != "text":
        call["image"] = tiny.picture(1, size)
    if task == "inpaint":
        call["mask_image"] = tiny.hole(size)
    if task == "image" and size == (33, 27):
        assert results(pair[1:] * 2, **call)[1].shape == (1, 27, 33, 3)
        return
    assert difference(pair, **call) <= LIMIT


def test_nine_channels(pipes) -> None:
    pair, given, control = pipes("inpaint", unet=tiny.unets(in_channels=9))
    assert difference(pair, **given, **{control: EDGES[:2]}) <= LIMIT
    assert difference(pair, **{**given, "strength": 0.75}, **{control: EDGES[:2]}, guess_mode=True) <= LIMIT


def test_given_latents(pipes) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for task in ("text", "inpaint"):
        pair, given, control = pipes(task)
        assert difference(pair, **given, latents=latents, **{control: EDGES[:2]}) <= LIMIT


def test_pooled_residuals_guess(pipes) -> None:
    pair, _, _ = pipes("text", global_pool_conditions=True)
    assert difference(pair, image=EDGES[:2]) <= LIMIT


def test_a_condition_for_inpainting(pipes) -> None:
    pair, given, _ = pipes("inpaint")
    condition = make_inpaint_condition(PICTURES, tiny.hole())
    assert condition.min() == -1
    assert difference(pair, **given, control_image=condition) <= LIMIT


@pytest.mark.parametrize("box", [(30, 30, 40, 36), (0, 0, 9, 40)])
def test_inpainting_of_a_crop(pipes, box) -> None:
    size = (64, 48)
    pair, _, _ = pipes("inpaint")
    call = {"prompt": "a cat", "image": tiny.picture(3, size), "mask_image": tiny.hole(size, box), "output_type": "pil"}
    theirs, ours = results(pair, **call, control_image=tiny.picture(4, size), padding_mask_crop=4, **PLAIN)
    assert np.abs(theirs - ours).max() <= 1.01 / 255


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("count", [1, 2])
def test_callbacks_change_the_control_picture(pipes, task, count) -> None:
    pair, given, control = pipes(task, count)
    call = {**given, control: EDGES[:count], "prompt": "a cat"}
    if task != "text":
        call["image"] = PICTURES[0]

    def callback(pipe, step, timestep, tensors):
        if step == 1:
            held = tensors[control]
            tensors[control] = held * 0.5 if count == 1 else [one * 0.5 for one in held]
        return tensors

    call |= {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", control]}
    assert difference(pair, **call) <= LIMIT


@pytest.mark.parametrize("count", [1, 2])
def test_folders_go_both_ways(pipes, tmp_path, count) -> None:
    (theirs, ours), _, _ = pipes("text", count)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    call = {"image": EDGES[:count], "prompt": "a cat"}
    for folder in ("theirs", "ours"):
        pair = [
            library.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / folder)
            for library in (diffusers, langevin)
        ]
        assert difference([theirs, pair[1]], **call) <= LIMIT
        assert difference([pair[0], ours], **call) <= LIMIT
    assert isinstance(langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs"), type(ours))
