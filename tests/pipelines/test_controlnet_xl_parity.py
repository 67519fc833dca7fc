"""Stable Diffusion XL with ControlNets and T2I-Adapters against the peer."""

from __future__ import annotations

from itertools import product

import diffusers
import numpy as np
import pytest
import torch

import langevin
from tests.pipelines import tiny, tiny_xl
from tests.pipelines.controls import adapters, controlnets, several
from tests.pipelines.pairs import difference, results, twins

pytestmark = pytest.mark.parity
LIMIT = 1e-4
EDGES = [tiny.picture(11), tiny.picture(12), tiny.picture(13), tiny.picture(14)]
PICTURES = [tiny.picture(1), tiny.picture(2)]
CHANGED = {"image": PICTURES, "strength": 0.75}
PAINTED = {"image": PICTURES, "strength": 0.75, "mask_image": tiny.hole(), "ours": {"paste_back": False}}
TASKS = {
    "text": ("StableDiffusionXLControlNetPipeline", {}, "image"),
    "image": ("StableDiffusionXLControlNetImg2ImgPipeline", CHANGED, "control_image"),
    "inpaint": ("StableDiffusionXLControlNetInpaintPipeline", PAINTED, "control_image"),
    "adapter": ("StableDiffusionXLAdapterPipeline", {}, "image"),
}
NETS = ("text", "image", "inpaint")
UNET = {**tiny.UNET, **tiny_xl.UNET}


@pytest.fixture(scope="module")
def pipes(xl):
    """Return a function from a task and a number of networks to both pipelines and the task's arguments."""

    def build(task: str, count: int = 1):
        name, call, control = TASKS[task]
        if task == "adapter":
            pair = several([adapters(seed=k) for k in range(count)])
            libraries = (diffusers, langevin)
            pair = [lib.MultiAdapter(nets) if count > 1 else nets for lib, nets in zip(libraries, pair, strict=True)]
            more = {"adapter": pair}
        else:
            more = {"controlnet": several([controlnets(UNET, seed=k) for k in range(count)])}
        return twins(name, *xl, **more), call, control

    return build


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 1.0},
        {"strength": 1.0},
        {"prompt_2": ["dog x", "cat y"], "negative_prompt": "dog", "negative_prompt_2": "x y"},
        {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (32, 40), "clip_skip": 1},
        {"prompt": "a cat", "picture": 0, "num_images_per_prompt": 2},
        {"seeds": [5, 6], "eta": 1.0},
        {"height": 24, "width": 32},
        {"picture": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
    ],
    ids=lambda call: "-".join(call) or "plain",
)
def test_arguments(pipes, task, call) -> None:
    pair, given, control = pipes(task)
    if task not in ("image", "inpaint"):
        call = {name: value for name, value in call.items() if name != "strength"}
    call = {**given, **call}
    picture = call.pop("picture", slice(2))
    call[control] = EDGES[picture] if isinstance(picture, (int, slice)) else picture
    if call.get("prompt") == "a cat" and control != "image":
        call["image"] = PICTURES[0]
    assert difference(pair, **call) <= LIMIT


@pytest.mark.parametrize("task", NETS)
@pytest.mark.parametrize(
    "call",
    [
        {"controlnet_conditioning_scale": 0.3},
        {"guess_mode": True},
        {"guess_mode": True, "guidance_scale": 1.0},
        {"control_guidance_start": 0.25, "control_guidance_end": 0.8},
    ],
    ids=lambda call: "-".join(call),
)
def test_control_arguments(pipes, task, call) -> None:
    pair, given, control = pipes(task)
    assert difference(pair, **given, **call, **{control: EDGES[:2]}) <= LIMIT


@pytest.mark.parametrize(
    ("task", "call"),
    [
        ("text", {"denoising_end": 0.6, "output_type": "latent"}),
        ("text", {"denoising_end": 0.6, "output_type": "latent", "control_guidance_end": 0.5}),
        ("text", {"prompt": "a cat", "negative_original_size": (64, 48), "negative_target_size": (32, 40)}),
        ("inpaint", {"denoising_end": 0.6, "output_type": "latent"}),
        ("inpaint", {"denoising_end": 0.6, "output_type": "latent", "control_guidance_end": 0.5}),
        ("inpaint", {"guidance_rescale": 0.7}),
        ("adapter", {"denoising_end": 0.6, "output_type": "latent"}),
        ("adapter", {"guidance_rescale": 0.7}),
        ("adapter", {"adapter_conditioning_factor": 0.6}),
        ("adapter", {"adapter_conditioning_factor": 0.0}),
        ("adapter", {"adapter_conditioning_factor": 0.7, "denoising_end": 0.6, "output_type": "latent"}),
        ("adapter", {"adapter_conditioning_factor": 0.5, "adapter_conditioning_scale": 0.4}),
        ("adapter", {"prompt": "a cat", "negative_original_size": (64, 48), "negative_target_size": (32, 40)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_arguments_of_one_task(pipes, task, call) -> None:
    pair, given, control = pipes(task)
    picture = EDGES[0] if "prompt" in call else EDGES[:2]
    assert difference(pair, **given, **call, **{control: picture}) <= LIMIT


@pytest.mark.parametrize(("task", "name"), product(TASKS, tiny.SCHEDULERS))
def test_every_scheduler(pipes, task, name) -> None:
    pair, given, control = pipes(task)
    call = {**given, control: EDGES[:2]}
    call |= {"control_guidance_end": 0.7} if task in NETS else {"adapter_conditioning_scale": 0.5}
    if task in ("image", "inpaint") and name == "PNDMScheduler":
        call["strength"] = 1.0
    assert difference(pair, name, **call) <= LIMIT


@pytest.mark.parametrize("task", TASKS)
def test_several_networks(pipes, task) -> None:
    pair, given, control = pipes(task, 2)
    if control != "image":
        given = {**given, "image": PICTURES[0]}
    scale = "adapter_conditioning_scale" if task == "adapter" else "controlnet_conditioning_scale"
    assert difference(pair, **given, prompt="a cat", **{control: EDGES[:2], scale: [0.4, 1.3]}) <= LIMIT


@pytest.mark.parametrize("size", [(32, 24), (33, 27)])
@pytest.mark.parametrize("task", ["text", "inpaint"])
def test_the_size_follows_the_picture(pipes, task, size) -> None:
    pair, given, control = pipes(task)
    call = {**given, control: tiny.picture(11, size), "prompt": "a cat"}
    if task == "inpaint":
        call |= {"image": tiny.picture(1, size), "mask_image": tiny.hole(size)}
    assert difference(pair, **call) <= LIMIT


@pytest.mark.parametrize("box", [(30, 30, 40, 36), (0, 0, 9, 40)])
def test_inpainting_of_a_crop(pipes, box) -> None:
    size = (64, 48)
    pair, _, _ = pipes("inpaint")
    call = {"prompt": "a cat", "image": tiny.picture(3, size), "mask_image": tiny.hole(size, box), "output_type": "pil"}
    call |= {"control_image": tiny.picture(4, size), "padding_mask_crop": 4, "strength": 0.75, "ours": PAINTED["ours"]}
    theirs, ours = results(pair, **call)
    assert np.abs(theirs - ours).max() <= 1.01 / 255


def test_nine_channels(xl) -> None:
    unet = tiny_xl.unet(diffusers, in_channels=9), tiny_xl.unet(langevin, in_channels=9)
    unet[1].load_state_dict(unet[0].state_dict())
    pair = twins(TASKS["inpaint"][0], *xl, controlnet=controlnets(UNET), unet=unet)
    for call in ({}, {"strength": 1.0}, {"denoising_start": 0.5, "output_type": "latent"}):
        assert difference(pair, **{**PAINTED, **call}, control_image=EDGES[:2]) <= LIMIT


@pytest.mark.parametrize("task", NETS)
def test_callbacks(pipes, task) -> None:
    pair, given, control = pipes(task)
    names = ["latents", "prompt_embeds", control]
    if task != "inpaint":
        names += ["add_text_embeds", "add_time_ids"]  # the peer's inpainting does not take these back

    def callback(pipe, step, timestep, tensors):
        assert set(tensors) == set(pipe._callback_tensor_inputs) - {"mask", "masked_image_latents"}
        if step == 1:
            for name in names:
                tensors[name] = tensors[name] * 0.5
        return {name: tensors[name] for name in names}

    offered = [name for name in pair[1]._callback_tensor_inputs if "mask" not in name]
    call = {**given, control: EDGES[:2], "callback_on_step_end": callback}
    assert difference(pair, **call, callback_on_step_end_tensor_inputs=offered) <= LIMIT


def test_inpainting_takes_back_what_callbacks_change(pipes) -> None:
    pair, given, control = pipes("inpaint")
    call = {**given, control: EDGES[:2], "callback_on_step_end_tensor_inputs": ["add_text_embeds"]}
    plain = results(pair, **call)
    change = {"callback_on_step_end": lambda *given: {"add_text_embeds": given[-1]["add_text_embeds"] * 0}}
    theirs, ours = results(pair, **call, **change)
    assert np.array_equal(theirs, plain[0]) and not np.array_equal(ours, plain[1])


@pytest.mark.parametrize("task", ["text", "adapter"])
def test_folders_go_both_ways(pipes, tmp_path, task) -> None:
    (theirs, ours), _, _ = pipes(task, 2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    call = {"image": EDGES[:2], "prompt": "a cat"}
    call |= {"adapter_conditioning_scale": [0.6, 0.3]} if task == "adapter" else {}
    name = TASKS[task][0]
    for folder in ("theirs", "ours"):
        pair = [getattr(library, name).from_pretrained(tmp_path / folder) for library in (diffusers, langevin)]
        assert difference([theirs, pair[1]], **call) <= LIMIT
        assert difference([pair[0], ours], **call) <= LIMIT
