"""Pipelines whose networks are compiled: what compiles anew, what does not, and pictures that stay the same.

Networks are compiled by a backend that runs their graphs as they are, so that what is counted does not take minutes.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

import langevin
from langevin.nn.compiled import bare
from tests.adapters import loras
from tests.compiling import Graphs
from tests.pipelines import ip_adapters, tiny
from tests.pipelines.conftest import quiet
from tests.pipelines.controls import controlnets

CALL = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np", "seed": 0, "height": 64, "width": 64}
PICTURE = tiny.picture(1, (64, 64))
ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


@pytest.fixture
def build(our_sd):
    """Return a function from a task's name to a pipeline over its own networks, with a ControlNet for its tasks."""

    def made(task: str = "", **more: Any):
        cls = getattr(langevin, f"StableDiffusion{task}Pipeline")
        pipe = quiet(cls(**{**our_sd.components, **tiny.networks(langevin), **more}, requires_safety_checker=False))
        pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
        return pipe

    return made


class Watched:
    """A pipeline whose parts are compiled as the documentation shows, with a counter for each.

    Args:
        parts: networks of the pipeline, and "encode" or "decode" of its autoencoder.
    """

    def __init__(self, pipe: Any, *parts: str) -> None:
        self.pipe, self.graphs = pipe, {name: Graphs() for name in parts}
        for name, graphs in self.graphs.items():
            owner = pipe if hasattr(pipe, name) else pipe.vae
            setattr(owner, name, torch.compile(getattr(owner, name), backend=graphs, fullgraph=True))

    def __call__(self, **call: Any) -> np.ndarray:
        given = {name: value for name, value in {**CALL, **call}.items() if value is not None}
        return self.pipe(**given).images

    def new(self, **call: Any) -> list[int]:
        """Return how many new graphs each part needed for a call."""
        self(**call)
        return [graphs.new() for graphs in self.graphs.values()]


@pytest.mark.slow
def test_what_a_call_may_change_without_compiling_and_what_compiles_once(build) -> None:
    run = Watched(build("ControlNet", controlnet=controlnets()[1]), "unet", "controlnet", "decode")
    same, once = [0, 0, 0], [1, 1, 1]
    assert run.new(image=PICTURE) == once
    for change in (
        {"prompt": "dog"},
        {"guidance_scale": 3.0},
        {"controlnet_conditioning_scale": 0.5},
        {"controlnet_conditioning_scale": 2},
        {"image": tiny.picture(5, (64, 64))},
        {"seed": 7, "num_inference_steps": 3},
    ):
        assert run.new(**{"image": PICTURE, **change}) == same, change
    assert run.new(image=PICTURE, height=96) == once
    for height, width in ((96, 112), (64, 64), (112, 64)):
        assert run.new(image=PICTURE, height=height, width=width) == same, (height, width)
    assert run.new(image=PICTURE, controlnet_conditioning_scale=0.0) == [1, 0, 0], "the UNet without residuals"
    assert run.new(image=PICTURE, control_guidance_end=0.5) == same


def test_scales_of_adapters_are_values_of_the_same_graph(build) -> None:
    pipe = build(image_encoder=tiny.image_encoder(), feature_extractor=tiny.feature_extractor())
    run = Watched(pipe, "unet")
    pipe.load_lora_weights(loras.diffusers({"unet": loras.halves(bare(pipe.unet))}), adapter_name="style")
    pipe.load_ip_adapter(ip_adapters.adapter("base", bare(pipe.unet)))
    shown = {"ip_adapter_image": tiny.picture(2, (32, 32))}
    assert run.new(**shown) == [1]
    seen = [run(**shown)]
    for weight in (0.5, 0.0, -1.0):
        pipe.set_adapters("style", weight)
        seen.append(run(**shown))
    pipe.set_adapters("style", 1.0)
    for weight in (0.3, 0.0):
        seen.append(run(**shown, cross_attention_kwargs={"scale": weight}))
    for weight in (0.5, 0.0, {"up": 0.7}):
        pipe.set_ip_adapter_scale(weight)
        seen.append(run(**shown))
    assert run.graphs["unet"].new() == 0
    assert np.abs(seen[2] - seen[5]).max() <= ROUNDING, "two ways to switch the LoRA off"
    different = [seen[i] for i in (0, 1, 2, 3, 4, 6, 7, 8)]
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(different) for b in different[:i])
    pipe.unet = bare(pipe.unet)
    assert np.abs(run(**shown) - seen[-1]).max() <= ROUNDING


def test_pictures_that_are_changed(build) -> None:
    run = Watched(build("Img2Img"), "unet", "encode", "decode")
    call = {"image": PICTURE, "strength": 0.9, "height": None, "width": None}
    assert run.new(**call) == [1, 1, 1]
    for change in ({"prompt": "dog"}, {"strength": 0.6}, {"image": tiny.picture(2, (64, 64))}):
        assert run.new(**{**call, **change}) == [0, 0, 0], change


def test_pictures_of_other_sizes(build) -> None:
    """From 96 pixels on: for smaller pictures torch's own convolution has a bound at which it compiles once more."""
    run = Watched(build("Inpaint"), "encode", "decode")
    for (height, width), new in (((96, 96), 1), ((112, 96), 1), ((112, 128), 0), ((96, 96), 0)):
        picture, mask = tiny.picture(1, (width, height)), tiny.hole((width, height))
        assert run.new(image=picture, mask_image=mask, height=height, width=width) == [new] * 2, (height, width)


@pytest.mark.parametrize("way", ["wrapper", "in place"])
def test_several_controlnets_compiled_as_one_are_compiled_each(build, way) -> None:
    pipe, graphs = build("ControlNet", controlnet=[controlnets(seed=k)[1] for k in range(2)]), Graphs()
    call = {**CALL, "image": [PICTURE] * 2, "controlnet_conditioning_scale": [0.7, 1.2]}
    wanted = pipe(**call).images
    if way == "wrapper":
        pipe.controlnet = torch.compile(pipe.controlnet, backend=graphs, fullgraph=True)
    else:
        pipe.controlnet.compile(backend=graphs, fullgraph=True)
    for _ in range(2):
        assert np.abs(pipe(**call).images - wanted).max() <= ROUNDING
    assert graphs.runs == 2 * 2 * CALL["num_inference_steps"] and graphs.count <= 2


@pytest.mark.slow
def test_optimize_compiles_the_controlnet_too_and_adapters_come_and_go(build, monkeypatch) -> None:
    compiled, graphs = torch.compile, Graphs()
    monkeypatch.setattr(torch, "compile", lambda *args, **more: compiled(*args, **more, backend=graphs, fullgraph=True))
    pipe = build("ControlNet", controlnet=controlnets()[1])
    state = loras.diffusers({"unet": loras.halves(pipe.unet)})

    def pictures() -> list[np.ndarray]:
        """Return a picture plain, with an adapter, with it fused, with it taken out again, and without it."""
        found = [pipe(**CALL, image=PICTURE).images]
        for change in (
            lambda: pipe.load_lora_weights(state, adapter_name="style"),
            lambda: pipe.fuse_lora(lora_scale=0.5),
            lambda: pipe.unfuse_lora(),
            lambda: pipe.unload_lora_weights(),
        ):
            change()
            found.append(pipe(**CALL, image=PICTURE).images)
        return found

    wanted = pictures()
    changes = {change.network for change in pipe.optimize(compile=True) if change.what == "compiled"}
    assert changes == {"unet", "vae", "controlnet"}
    found = pictures()
    assert all(np.abs(a - b).max() <= 1e-4 for a, b in zip(wanted, found, strict=True))
    assert np.abs(found[1] - found[0]).max() > 1e-3 < np.abs(found[2] - found[1]).max()
    assert graphs.count == 3 + 2, "three networks; the UNet with an adapter and with fused weights"
    runs = graphs.runs
    pipe.deoptimize()
    assert np.array_equal(pipe(**CALL, image=PICTURE).images, wanted[0]) and graphs.runs == runs


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")
def test_the_documented_line_with_the_compiler_that_writes_code(build) -> None:
    """A UNet of one block on the way down and one up, on whatever device torch's own backend writes code for here."""
    shape = {"block_out_channels": (8,), "norm_num_groups": 4, "mid_block_type": None}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    pipe = build(unet=langevin.UNet2DConditionModel(**{**tiny.UNET, **shape, **blocks}).eval())
    wanted = pipe(**CALL).images
    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert np.abs(pipe(**CALL).images - wanted).max() <= 1e-4
        pipe(**{**CALL, "prompt": "dog", "guidance_scale": 3.0, "seed": 1})
