"""Step-end callbacks, interruption, and runs that share nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import langevin
from langevin.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from langevin.core.errors import ConfigError, InputError
from langevin.pipelines.inputs import begin
from langevin.pipelines.runs import running
from tests.pipelines import tiny

CALL = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "np", "seed": 5}


def test_documented_properties_belong_to_the_run(pipe) -> None:
    seen = []

    def callback(inner, step, timestep, tensors):
        seen.append((inner is pipe, inner.guidance_scale, inner.guidance_rescale, inner.clip_skip, inner.num_timesteps))
        assert inner.do_classifier_free_guidance and inner.cross_attention_kwargs is None and not inner.interrupt
        assert isinstance(timestep, torch.Tensor) and int(timestep) == timestep
        return tensors

    pipe(**CALL, guidance_scale=3.0, guidance_rescale=0.2, clip_skip=1, callback_on_step_end=callback)
    assert seen == [(True, 3.0, 0.2, 1, 4)] * 4
    assert pipe.guidance_scale is None and pipe.num_timesteps is None and pipe.interrupt is False


def test_a_callback_may_return_nothing(pipe) -> None:
    plain = pipe(**CALL).images
    assert np.array_equal(plain, pipe(**CALL, callback_on_step_end=lambda *_: None).images)


def test_an_unknown_tensor_in_the_answer_is_an_error(pipe) -> None:
    with pytest.raises(InputError, match="latents"):
        pipe(**CALL, callback_on_step_end=lambda *_: {"latent": torch.zeros(1)})


def test_guidance_can_be_switched_off_half_way(pipe) -> None:
    rows = []
    forward = pipe.unet.forward

    def counted(sample, *args, **kwargs):
        rows.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipe.unet.forward = counted
    try:
        call = {**CALL, "prompt": ["a cat", "a dog"]}
        images = pipe(**call, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5)).images
    finally:
        del pipe.unet.forward
    assert rows == [4, 4, 4, 2]
    assert np.abs(images[0] - images[1]).max() > 1e-3
    alone = pipe(**CALL, callback_on_step_end=SDCFGCutoffCallback(None, 2)).images
    assert np.abs(alone[0] - images[0]).max() <= 1e-5


def test_the_scale_can_be_changed_by_assignment(pipe) -> None:
    def callback(inner, step, timestep, tensors):
        inner._guidance_scale = 2.0
        return tensors

    changed = pipe(**CALL, guidance_scale=7.5, callback_on_step_end=callback).images
    constant = pipe(**CALL, guidance_scale=2.0, callback_on_step_end=callback).images
    assert not np.array_equal(changed, constant)
    with pytest.raises(ConfigError, match="belongs to a run"):
        pipe._guidance_scale = 1.0


def test_a_callback_can_change_the_negative_prompt(pipe) -> None:
    def callback(inner, step, timestep, tensors):
        return {"negative_prompt_embeds": tensors["negative_prompt_embeds"] * 0}

    names = {"callback_on_step_end_tensor_inputs": ["negative_prompt_embeds"]}
    changed = pipe(**CALL, callback_on_step_end=callback, **names).images
    assert not np.array_equal(changed, pipe(**CALL).images)


def test_a_callback_cannot_return_another_number_of_rows(pipe) -> None:
    def callback(inner, step, timestep, tensors):
        return {"prompt_embeds": torch.zeros(5, 77, tiny.WIDTH)}

    with pytest.raises(InputError, match="5 rows"):
        pipe(**CALL, callback_on_step_end=callback)


class Halve(PipelineCallback):
    """Halve the latents after every step."""

    tensor_inputs = ("latents",)

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        return {"latents": callback_kwargs["latents"] / 2}


def test_several_callbacks_work_in_order(pipe) -> None:
    one = pipe(**CALL, callback_on_step_end=Halve()).images
    both = pipe(**CALL, callback_on_step_end=MultiPipelineCallbacks([Halve(), SDCFGCutoffCallback()])).images
    assert np.abs(one - both).max() <= 1e-6
    assert not np.array_equal(one, pipe(**CALL).images)


def test_callback_objects_check_their_options() -> None:
    for options in ({"cutoff_step_ratio": None}, {"cutoff_step_index": 3}, {"cutoff_step_ratio": 1.5}):
        with pytest.raises(InputError, match="cutoff_step_ratio"):
            Halve(**options)
    with pytest.raises(InputError, match="tensor_inputs"):
        PipelineCallback()


def test_a_callback_object_has_to_say_what_it_does(pipe) -> None:
    class Silent(PipelineCallback):
        tensor_inputs = ("latents",)

    with pytest.raises(NotImplementedError, match="Silent must write callback_fn"):
        pipe(**CALL, callback_on_step_end=Silent())


def test_the_deprecated_callback_still_works(pipe) -> None:
    seen = []
    with pytest.warns(FutureWarning, match="callback_on_step_end"):
        pipe(**CALL, callback=lambda step, timestep, latents: seen.append((step, latents.shape)), callback_steps=2)
    assert seen == [(0, (1, 4, 8, 8)), (2, (1, 4, 8, 8))]
    with pytest.raises(InputError, match="callback_steps"), pytest.warns(FutureWarning):
        pipe(**CALL, callback=print, callback_steps=0)
    with pytest.warns(FutureWarning):
        assert np.array_equal(pipe(**CALL).images, pipe(**CALL, callback=None).images)


def test_a_callback_is_a_function(pipe) -> None:
    with pytest.raises(InputError, match="`callback_on_step_end` is a int; it must be a function"):
        pipe(**CALL, callback_on_step_end=3)
    with pytest.raises(InputError, match="`callback` is a str"), pytest.warns(FutureWarning):
        pipe(**CALL, callback="print")


def test_interruption_keeps_what_the_callback_returned(pipe, caplog_ours) -> None:
    steps = []

    def callback(inner, step, timestep, tensors):
        steps.append(step)
        inner._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipe(**{**CALL, "output_type": "latent"}, callback_on_step_end=callback).images
    assert steps == [0, 1] and not latents.any()
    assert "interrupted after step 2 of 4" in caplog_ours.text


def test_another_thread_can_interrupt(pipe) -> None:
    started, told = threading.Event(), threading.Event()
    steps = []

    def callback(inner, step, timestep, tensors):
        steps.append(step)
        started.set()
        assert told.wait(30)
        return tensors

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(pipe, **CALL, callback_on_step_end=callback)
        assert started.wait(30)
        pipe._interrupt = True
        told.set()
        run.result(60)
    assert steps == [0]
    assert len(pipe(**CALL).images) == 1, "the next run is not interrupted"


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
def test_threads_give_serial_results(pipe, name) -> None:
    pipe.scheduler = tiny.scheduler(langevin, name)
    scales = [2.0, 5.0, 7.5, 1.0]
    wrong = []

    def draw(k: int) -> np.ndarray:
        def callback(inner, step, timestep, tensors):
            if inner.guidance_scale != scales[k] or inner.num_timesteps < 3 + k:
                wrong.append((k, step))
            return tensors

        call = {**CALL, "num_inference_steps": 3 + k, "seed": k, "guidance_scale": scales[k]}
        return pipe(**call, callback_on_step_end=callback).images

    serial = [draw(k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(4)))
    assert wrong == []
    assert max(np.abs(a - b).max() for a, b in zip(serial, together, strict=True)) <= 1e-5


def test_nested_runs_of_two_pipelines_do_not_mix(pipe) -> None:
    other = langevin.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)

    def run(which, scale):
        return running(begin(which, {"prompt": "a cat", "guidance_scale": scale}))

    with run(pipe, 1.0), run(other, 2.0), run(pipe, 3.0):
        assert (pipe.guidance_scale, other.guidance_scale) == (3.0, 2.0)
    assert pipe.guidance_scale is None


def test_a_picture_of_a_batch_can_be_made_alone(pipe) -> None:
    for name in ("EulerAncestralDiscreteScheduler", "DDPMScheduler"):
        pipe.scheduler = tiny.scheduler(langevin, name)
        batch = pipe(**{**CALL, "seed": 20}, num_images_per_prompt=3).images
        alone = pipe(**{**CALL, "seed": 22}).images
        assert np.abs(batch[2] - alone[0]).max() <= 1e-5


def test_the_global_stream_is_neither_read_nor_advanced(pipe) -> None:
    pipe.scheduler = tiny.scheduler(langevin, "EulerAncestralDiscreteScheduler")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = pipe(**{**CALL, "seed": None}).images
    assert torch.equal(state, torch.get_rng_state())
    assert not np.array_equal(first, pipe(**{**CALL, "seed": None}).images)
