"""Pipelines with schedulers that were given another solver or other levels."""

from __future__ import annotations

import pytest

import langevin
from langevin.core.errors import ConfigError
from langevin.diffusion.grid import align_your_steps
from langevin.diffusion.solvers import Churn, Churned, FirstOrder, Heun, Restart
from tests.pipelines import tiny

SOLVERS = (
    (FirstOrder(), 4),
    (Heun(), 7),
    (Restart(FirstOrder(), ((0.5, 5.0, 2, 2),)), 8),
    (Churned(Heun(), Churn(2.0)), 7),
    (FirstOrder(eta=[0.0, 1.0, 0.5, 0.0]), 4),
)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_pipeline_makes_every_call_of_another_solver(name: str, tmp_path) -> None:
    scheduler = getattr(langevin, name)()
    pipe = langevin.DDPMPipeline(tiny.pixel_unet(langevin), scheduler)
    pipe.set_progress_bar_config(disable=True)
    told: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda module, args, kwargs: told.append(float(args[1])), with_kwargs=True)
    pictures = []
    for solver, calls in SOLVERS:
        pipe.scheduler = scheduler.using(solver=solver)
        told.clear()
        images = [pipe(num_inference_steps=4, output_type="np", seed=0).images for _ in range(2)]
        plan = pipe.scheduler.plan(4)
        assert len(plan.steps) == calls and told == pytest.approx([step.timestep for step in plan.steps] * 2)
        assert (images[0] == images[1]).all()
        pictures.append(images[0])
    assert len({picture.tobytes() for picture in pictures}) == len(SOLVERS)
    with pytest.raises(ConfigError, match="cannot be saved"):
        pipe.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("name", ["DDIMPipeline", "PNDMPipeline"])
def test_a_scheduler_turned_into_the_class_of_a_pipeline_keeps_solver_and_levels(name: str) -> None:
    given = langevin.EulerDiscreteScheduler().using(solver=Heun()).using(grid=lambda grid: (*grid[:-1:2], grid[-1]))
    pipe = getattr(langevin, name)(tiny.pixel_unet(langevin), given)
    assert type(pipe.scheduler).__name__ == name.replace("Pipeline", "Scheduler")
    plan = pipe.scheduler.plan(8)
    assert len(plan.grid) == 5 and len(plan.steps) == 7 and isinstance(plan.solver, Heun)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=8, output_type="np", seed=0).images.shape[0] == 1


def test_a_pipeline_takes_aligned_levels(tmp_path) -> None:
    pipe = tiny.stable_diffusion(langevin, tmp_path, scheduler=langevin.EulerDiscreteScheduler())
    sigmas, seen = align_your_steps("stable-diffusion-1.5", 5), []
    pipe("a cat", sigmas=sigmas, height=16, width=16, seed=0, output_type="latent",
         callback_on_step_end=lambda pipe, step, t, values: seen.append(float(t)) or values)  # fmt: skip
    assert seen == pytest.approx([step.timestep for step in pipe.scheduler.plan(sigmas=sigmas).steps])


def test_a_corrected_scheduler_keeps_its_solver(tmp_path) -> None:
    given = langevin.DDIMScheduler(steps_offset=0, clip_sample=True).using(solver=Heun())
    pipe = tiny.stable_diffusion(langevin, tmp_path, scheduler=given)
    assert pipe.scheduler.config.steps_offset == 1
    assert isinstance(pipe.scheduler.plan(4).solver, Heun)
