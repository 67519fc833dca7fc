"""Schedulers of other libraries in tasks that start inside their schedule."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest

import langevin
from tests.pipelines import tiny

pytestmark = pytest.mark.parity
NAMES = ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"]


def scheduler(library, name: str):
    options = {} if name in ("HeunDiscreteScheduler", "DPMSolverMultistepScheduler") else {"steps_offset": 1}
    if name == "DDIMScheduler":
        options["clip_sample"] = False
    return getattr(library, name)(**tiny.TABLE, **options)


def pictures(pipe, name: str, **call) -> list[np.ndarray]:
    """Return what the pipeline draws with this library's scheduler and with the peer's."""
    made = []
    for library in (langevin, diffusers):
        pipe.scheduler = scheduler(library, name)
        made.append(pipe("a cat", num_inference_steps=6, seed=3, output_type="np", **call).images)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_changed_alike(pipe, name) -> None:
    change = langevin.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    change.set_progress_bar_config(disable=True)
    ours, theirs = pictures(change, name, image=tiny.picture(1), strength=0.5)
    assert np.abs(ours - theirs).max() <= 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_part_is_painted_alike(pipe, name, strength) -> None:
    paint = langevin.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    paint.set_progress_bar_config(disable=True)
    call = {"image": tiny.picture(1), "mask_image": tiny.hole(), "strength": strength}
    ours, theirs = pictures(paint, name, **call)
    assert np.abs(ours - theirs).max() <= 1e-4


def test_a_run_is_cut_in_two(pipe) -> None:
    from langevin.pipelines.foreign import foreign_plan

    plan = foreign_plan(scheduler(diffusers, "DDIMScheduler"), 10)
    first, second = plan.slice(end=0.6), plan.slice(start=0.6)
    told = [step.timestep for part in (first, second) for step in part.steps]
    assert told == [step.timestep for step in plan.steps]
    ours = scheduler(langevin, "DDIMScheduler").plan(10)
    assert [step.timestep for step in second.steps] == [step.timestep for step in ours.slice(start=0.6).steps]
