"""Speed-ups that change the picture: what they leave out, and that nothing else changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import langevin
import langevin.callbacks
from langevin.core.errors import ConfigError, InputError
from langevin.core.rng import normal, seeded
from langevin.diffusion.guidance import CFG, NEGATIVE, POSITIVE, Within, guided
from langevin.diffusion.process import Level
from langevin.diffusion.table import Step
from langevin.pipelines.reference import reference_only
from tests.pipelines import tiny
from tests.pipelines.controls import controlnets
from tests.pipelines.test_sd_edit import build

CALL = {"prompt": "a cat", "num_inference_steps": 6, "output_type": "np", "seed": 1}
NEVER = (1e6, float("inf"))
"""An interval without any step."""


class Seen:
    """Counts what a UNet is asked for: rows of every call, and calls that reach the middle."""

    def __init__(self, unet) -> None:
        self.rows, self.deep, self.hooks = [], 0, []
        self.hooks.append(unet.conv_in.register_forward_hook(lambda m, args, out: self.rows.append(len(out))))
        self.hooks.append(unet.mid_block.register_forward_hook(self.count))

    def count(self, module, args, out) -> None:
        self.deep += 1

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        for hook in self.hooks:
            hook.remove()


def at(level: Level) -> Step:
    """Return a step at a level."""
    return Step(0, 1, 0, level, level, 1.0, True)


def shape_of(cls, pipe, **more):
    """Return a pipeline of another class over the same components, and quiet."""
    other = cls.from_pipe(pipe, **more)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.fixture
def drawn(pipe):
    """Return what draws in every shape that shares one UNet: name -> a pipeline and what it is called with."""
    net = controlnets()[1]
    return {
        "text": (pipe, {}),
        "image": (shape_of(langevin.StableDiffusionImg2ImgPipeline, pipe), {"image": tiny.picture(), "strength": 1.0}),
        "inpaint": (
            shape_of(langevin.StableDiffusionInpaintPipeline, pipe),
            {"image": tiny.picture(), "mask_image": tiny.hole()},
        ),
        "control": (
            shape_of(langevin.StableDiffusionControlNetPipeline, pipe, controlnet=net),
            {"image": tiny.picture(), "controlnet_conditioning_scale": 0.5},
        ),
        "reference": (reference_only(pipe, tiny.picture(1)), {}),
    }


# DeepCache ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["text", "image", "inpaint", "control", "reference"])
def test_deep_features_at_every_call_change_nothing(drawn, shape) -> None:
    pipe, more = drawn[shape]
    plain = pipe(**CALL, **more).images
    pipe.enable_deep_cache(1)
    assert np.array_equal(pipe(**CALL, **more).images, plain)
    pipe.enable_deep_cache(3)
    cached = pipe(**CALL, **more).images
    assert np.isfinite(cached).all() and np.abs(cached - plain).max() > 1e-5
    pipe.disable_deep_cache()
    assert np.array_equal(pipe(**CALL, **more).images, plain)


@pytest.mark.parametrize(("interval", "deep"), [(1, 6), (2, 3), (3, 2), (4, 2), (100, 1)])
def test_how_often_the_deep_part_is_computed(pipe, interval, deep) -> None:
    pipe.enable_deep_cache(interval)
    with Seen(pipe.unet) as seen:
        pipe(**CALL)
    assert seen.deep == deep and seen.rows == [2] * 6


def test_guidance_that_ends_on_the_way_asks_anew(pipe) -> None:
    pipe.enable_deep_cache(4)
    callback = langevin.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    with Seen(pipe.unet) as seen:
        pipe(**CALL, callback_on_step_end=callback)
    assert seen.rows == [2, 2, 1, 1, 1, 1] and seen.deep == 2


def test_threads_keep_their_features_apart(pipe) -> None:
    pipe.enable_deep_cache(3)
    calls = [{**CALL, "prompt": prompt, "seed": k} for k, prompt in enumerate(("a cat", "a dog", "a red house"))]
    alone = [pipe(**call).images for call in calls]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda call: pipe(**call).images, calls))
    assert all(np.abs(a - b).max() <= 1e-5 for a, b in zip(alone, together, strict=True))


def test_one_whole_pass_for_two_layers_is_what_is_drawn_by_hand(pipe) -> None:
    """Guidance off, one prompt: the loop of a user who hands the features on gives the same latents."""
    call = {**CALL, "guidance_scale": 1.0, "output_type": "latent"}
    pipe.enable_deep_cache(2)
    wanted = pipe(**call).images
    pipe.disable_deep_cache()
    text = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)[0]
    x = normal((1, 4, 8, 8), generator=seeded(1), device="cpu", dtype=text.dtype)
    pipe.scheduler.set_timesteps(6)
    deep = pipe.unet.new_deep_features()
    with torch.no_grad():
        for k, t in enumerate(pipe.scheduler.timesteps):
            if k % 2 == 0:
                deep.kept = None
            x = pipe.scheduler.step(pipe.unet(x, t, text, deep_features=deep).sample, t, x).prev_sample
    assert torch.allclose(x, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "match"), [((0,), "interval"), ((2.5,), "interval"), ((3, 0), "layers"), ((3, 4), "layers")]
)
def test_wrong_numbers_of_deep_cache_are_said(pipe, given, match) -> None:
    with pytest.raises(InputError, match=match):
        pipe.enable_deep_cache(*given)
    assert pipe._deep_cache is None


def test_networks_without_deep_features_are_refused(pipe) -> None:
    unet = pipe.unet
    pipe.enable_deep_cache()
    pipe.unet = torch.nn.Identity()
    pipe.unet.in_channels = 4
    with pytest.raises(ConfigError, match="Identity keeps no deep features"):
        pipe(**CALL)
    pipe.unet = unet
    pixels = langevin.DDPMPipeline(unet=langevin.UNet2DModel(**tiny.PIXELS), scheduler=langevin.DDPMScheduler())
    for switch in ("enable_deep_cache", "enable_guidance_interval"):
        with pytest.raises(ConfigError, match=f"{switch}.*DDPMPipeline"):
            getattr(pixels, switch)()


# Guidance intervals ---------------------------------------------------------------------------------------------------


def test_outside_of_the_interval_the_positive_prompt_is_taken() -> None:
    x, negative, positive = torch.zeros(1), torch.tensor([1.0]), torch.tensor([3.0])
    within, answers = Within(CFG(2.0), 0.5, 2.0), {NEGATIVE: negative, POSITIVE: positive}
    for ratio, wanted in ((0.5, 3.0), (0.51, 5.0), (2.0, 5.0), (2.01, 3.0), (0.0, 3.0)):
        step = at(Level(0, 0.5, 0.5 * ratio))
        assert guided(within, x, step, lambda branches: tuple(answers[b] for b in branches)).item() == wanted
    flow = at(Level(0, 0.0, 1.0))
    assert not within.holds(flow) and Within(CFG(2.0), 0.5, float("inf")).holds(flow)


@pytest.mark.parametrize("shape", ["text", "image", "inpaint", "control", "reference"])
def test_everywhere_nowhere_and_in_between(drawn, shape) -> None:
    pipe, more = drawn[shape]
    plain, without = pipe(**CALL, **more).images, pipe(**CALL, **more, guidance_scale=1.0).images
    pipe.enable_guidance_interval(0.0, float("inf"))
    assert np.array_equal(pipe(**CALL, **more).images, plain)
    pipe.enable_guidance_interval(*NEVER)
    assert np.abs(pipe(**CALL, **more).images - without).max() <= 1e-5
    pipe.enable_guidance_interval()
    with Seen(pipe.unet) as seen:
        assert np.abs(pipe(**CALL, **more).images - plain).max() > 1e-4
    guided_rows = [rows for rows in seen.rows if rows > 1] if shape == "reference" else seen.rows
    assert {1, 2} == set(seen.rows) and len(guided_rows) < 7
    pipe.disable_guidance_interval()
    assert np.array_equal(pipe(**CALL, **more).images, plain)


def test_the_levels_of_the_steps_decide_whatever_their_number(pipe) -> None:
    pipe.enable_guidance_interval(1.0, 3.0)
    for steps in (5, 11):
        pipe.scheduler.set_timesteps(steps)
        alpha = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps]
        ratio = ((1 - alpha) / alpha).sqrt()
        with Seen(pipe.unet) as seen:
            pipe(**{**CALL, "num_inference_steps": steps})
        assert seen.rows == [2 if 1.0 < r <= 3.0 else 1 for r in ratio]


def test_an_instruction_is_followed_as_with_both_scales_at_1(pipe) -> None:
    unet = tiny.unets(in_channels=8)[1]
    edit = build("StableDiffusionInstructPix2PixPipeline", pipe, unet=unet, requires_safety_checker=False)
    call = {**CALL, "image": tiny.picture()}
    plain, off = edit(**call).images, edit(**call, guidance_scale=1.0).images
    edit.enable_guidance_interval(0.0, float("inf"))
    assert np.array_equal(edit(**call).images, plain)
    edit.enable_guidance_interval(*NEVER)
    assert np.abs(edit(**call).images - off).max() <= 1e-5
    edit.enable_guidance_interval()
    with Seen(unet) as seen:
        edit(**call)
    assert set(seen.rows) == {1, 3}


def test_of_sdxl(xl) -> None:
    pipe = build("StableDiffusionXLPipeline", xl[1])
    pipe.scheduler = tiny.scheduler(langevin, "EulerDiscreteScheduler")
    plain = pipe(**CALL).images
    pipe.enable_guidance_interval()
    pipe.enable_deep_cache(2, 1)
    with Seen(pipe.unet) as seen:
        assert np.abs(pipe(**CALL).images - plain).max() > 1e-4
    assert set(seen.rows) == {1, 2} and len(seen.rows) == 6 and seen.deep < 6


@pytest.mark.parametrize(
    ("given", "match"), [((-1, 2), "low"), ((2, 2), "above `low`"), ((0, "1"), "high"), ((0, float("nan")), "high")]
)
def test_wrong_intervals_are_said(pipe, given, match) -> None:
    with pytest.raises(InputError, match=match):
        pipe.enable_guidance_interval(*given)
    assert pipe._guidance_interval is None


def test_runs_that_an_interval_does_not_fit_are_refused(pipe, caplog) -> None:
    pipe.enable_guidance_interval()
    with pytest.raises(ConfigError, match="AND needs guidance at every step"):
        pipe(**{**CALL, "prompt": "a cat AND a dog"}, prompt_syntax="a1111")
    pipe.enable_guidance_interval(*NEVER)
    with caplog.at_level("WARNING", logger="langevin"):
        pipe(**CALL)
    assert "No step of this run is guided" in caplog.text
    pipe.enable_guidance_interval()
    pipe.unet = tiny.unets(time_cond_proj_dim=16)[1]
    with pytest.raises(ConfigError, match="is told its guidance scale"):
        pipe(**CALL)
