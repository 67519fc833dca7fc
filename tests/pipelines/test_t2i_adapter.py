"""T2I-Adapter pipelines by themselves: when the adapter works, how calls are checked, where we differ from the peer."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.pipelines import tiny
from tests.pipelines.controls import adapters, several
from tests.pipelines.pairs import results, twins

EDGES = [tiny.picture(11), tiny.picture(12), tiny.picture(13), tiny.picture(14)]
CALL = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "np", "seed": 5}


@pytest.fixture
def build(our_sd):
    """Return a function from a number of adapters and their options to a pipeline of this library."""

    def made(count: int = 1, **options):
        parts = {name: part for name, part in our_sd.components.items() if name != "image_encoder"}
        nets = [adapters(seed=k, **options)[1] for k in range(count)]
        adapter = nets if count > 1 else nets[0]
        pipe = langevin.StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
        pipe.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


@pytest.mark.parametrize(("scale", "calls"), [(1.0, 1), (0.0, 0)])
def test_the_adapter_works_once_or_not_at_all(build, pipe, scale, calls) -> None:
    plain, adapted, seen = pipe(**CALL).images, build(), []
    adapted.adapter.register_forward_hook(lambda *_: seen.append(1))
    made = adapted(**CALL, image=EDGES[0], adapter_conditioning_scale=scale).images
    assert len(seen) == calls and np.array_equal(plain, made) == (scale == 0)


@pytest.mark.parametrize(
    ("count", "call", "words"),
    [
        (1, {"image": None}, "No `image` was given"),
        (2, {"image": EDGES[0]}, "list with one picture for each"),
        (2, {"image": EDGES[:1]}, r"1 entries for 2 networks \(T2IAdapter\)"),
        (2, {"image": EDGES[:2], "adapter_conditioning_scale": [1.0]}, "1 values for 2 networks"),
        (1, {"adapter_conditioning_scale": None}, "finite number"),
        (1, {"height": 18, "width": 16, "downscale_factor": 4}, "not a multiple of 4; nearest: 16 and 20"),
        (1, {"callback": print, "callback_steps": 0}, "at least 1"),
    ],
)
def test_bad_calls_are_refused_before_any_work(build, monkeypatch, count, call, words) -> None:
    call = dict(call)
    pipe = build(count, downscale_factor=call.pop("downscale_factor", 2))
    for name in ("unet", "text_encoder", "vae", "adapter"):
        monkeypatch.setattr(getattr(pipe, name), "forward", None)
    with pytest.raises((InputError, ConfigError), match=words):
        pipe(**{**CALL, "image": EDGES[0], **call})


# Deliberate differences ---------------------------------------------------------------------------------------------


def test_one_weight_serves_every_adapter(build) -> None:
    pipe = build(2)
    same = pipe(**CALL, image=EDGES[:2], adapter_conditioning_scale=[1.0, 1.0]).images
    assert np.array_equal(same, pipe(**CALL, image=EDGES[:2]).images)


@pytest.mark.parity
def test_each_picture_of_a_prompt_follows_the_prompts_own_control(peer_sd, our_sd) -> None:
    pair = twins("StableDiffusionAdapterPipeline", peer_sd, our_sd, adapter=several([adapters()]))
    call = {"image": EDGES[:2], "num_images_per_prompt": 2, "seeds": [1, 2, 3, 4]}
    theirs, ours = results(pair, **call)
    alone = results(pair, **{**call, "prompt": "a cat", "image": EDGES[0], "seeds": [1, 2]})[1]
    assert np.abs(ours[:2] - alone).max() <= 1e-5 < np.abs(theirs[1] - alone[1]).max()


def test_any_size_is_brought_down_to_one_that_fits(build, caplog_ours) -> None:
    made = build()(**CALL, image=tiny.picture(1, (33, 27))).images
    assert made.shape == (1, 26, 32, 3)
    assert "the result's is 26" in caplog_ours.text


def test_an_adapter_for_another_unet_is_named(build) -> None:
    with pytest.raises(ConfigError, match=r"maps of \[32, 48\] channels"):
        build(channels=[32, 48])(**CALL, image=EDGES[0])


@pytest.mark.parity
def test_arrays_are_pictures(peer_sd, our_sd) -> None:
    theirs, ours = twins("StableDiffusionAdapterPipeline", peer_sd, our_sd, adapter=adapters())
    ours.scheduler = tiny.scheduler(langevin, "DDIMScheduler")
    array = np.asarray(EDGES[0])
    with pytest.raises(TypeError):
        theirs("a cat", image=array, num_inference_steps=1)
    assert np.array_equal(ours(**CALL, image=array).images, ours(**CALL, image=EDGES[0]).images)


@pytest.mark.parity
def test_lists_of_adapters_in_both_families(xl) -> None:
    nets = several([adapters(seed=k) for k in range(2)])
    name = "StableDiffusionXLAdapterPipeline"
    ours = getattr(langevin, name)(**xl[1].components, adapter=nets[1])
    assert isinstance(ours.adapter, langevin.MultiAdapter)
    with pytest.raises(AttributeError):
        getattr(diffusers, name)(**xl[0].components, adapter=nets[0])
