"""Rows that go to the data and back, climb, or run upwards: marginals, closed forms, exact ends."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion import Plan, Prediction, sample
from langevin.diffusion.betas import betas
from langevin.diffusion.known import keep_known
from langevin.diffusion.levels import upwards
from langevin.diffusion.parallel import step_each
from langevin.diffusion.prediction import Boundary
from langevin.diffusion.process import TableProcess, preserving
from langevin.diffusion.solvers import FirstOrder, Renoising, Resampling, Trajectory, climb, climbing, jumps, rise
from tests.schedulers.oracle import first_noise, network, protocol, seeded

DATA = torch.full((1, 2, 4, 4), 0.3, dtype=torch.float64)
TABLE = TableProcess(np.cumprod(1 - betas("scaled_linear", start=0.00085, end=0.012).double().numpy()))


def draws(seed: int = 5, shape=DATA.shape):
    generator = seeded(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def exact(x, step):
    """Return the exact noise of `x`, the data being known; velocity and preconditioned outputs follow from it."""
    return (x - step.level.alpha * DATA) / step.level.sigma


def distance(plan: Plan, model=exact) -> float:
    """Return how far a run with an exact model ends from the data of its last level, in units of its signal."""
    noise = draws()
    x = sample(model, plan.start(noise(), DATA), plan, noise=noise)
    end = plan.grid[-1]
    return float((x - end.alpha * DATA).abs().max()) - 5.0 * end.sigma


def test_exact_noise_gives_the_data() -> None:
    """For every sampler, number of steps and start inside the schedule."""
    samplers = (
        (langevin.LCMScheduler(timestep_scaling=1e9), {}, (1, 2, 4, 8, 50)),
        (langevin.UnCLIPScheduler(clip_sample=False), {}, (2, 3, 25, 1000)),
        (langevin.DDIMParallelScheduler(clip_sample=False), {}, (1, 7)),
        (langevin.DDPMParallelScheduler(clip_sample=False), {}, (1, 7)),
        (langevin.RePaintScheduler(clip_sample=False, eta=0.5), {"jump_length": 2, "jump_n_sample": 3}, (1, 7, 12)),
    )
    for scheduler, options, counts in samplers:
        for steps in counts:
            plan = scheduler.plan(steps, **options)
            for first in range(0, len(plan.steps), 1 + len(plan.steps) // 8):
                assert distance(plan.part(first)) < 1e-9, (type(scheduler).__name__, steps, first)
    plan = langevin.LCMScheduler().plan(4)  # with the boundary condition of the documented models
    assert distance(plan) < 1e-5


def test_exact_output_of_a_consistency_model() -> None:
    scheduler = langevin.CMStochasticIterativeScheduler(clip_denoised=False)
    scaling = scheduler._prediction().scaling

    def model(x, step):
        (skip, out), _ = scaling(step.level)
        return (DATA - skip * x) / out

    for steps in (1, 2, 5, 39):
        plan = scheduler.plan(steps)
        for first in range(0, steps, 1 + steps // 5):
            assert distance(plan.part(first), model) < 1e-9
    assert scheduler.plan(5).steps[0].in_scale == pytest.approx(1 / math.hypot(80.0, 0.5))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_trajectory_ends_at_the_first_training_step(eta: float) -> None:
    """With the exact noise held fixed the run ends at alpha_0 * x_0 + sigma_0 * eps, whatever is drawn between."""
    scheduler = langevin.TCDScheduler()
    for steps in (1, 2, 4, 50):
        plan, noise = scheduler.plan(steps, eta=eta), draws()
        seen = []

        def model(x, step, seen=seen):
            seen.append(exact(x, step))
            return seen[-1]

        x = sample(model, plan.start(noise(), DATA), plan, noise=noise)
        wanted = TABLE.level(0).alpha * DATA + TABLE.level(0).sigma * seen[-1]
        assert float((x - wanted).abs().max()) < 1e-6


def marginal(row) -> tuple[float, float]:
    """Return what a row makes of data and of the variance of the noise, its outputs being exact."""
    a = row.level
    data = row.sample * a.alpha + sum(row.outputs)
    noise = row.sample * a.sigma + row.direction
    return data, noise**2 + (row.noise or 0.0) ** 2


def test_rows_keep_the_marginals() -> None:
    grid = (*(TABLE.level(t) for t in (999, 700, 400, 100)), TABLE.level(0))
    solvers = [
        Renoising(),
        *(Trajectory(TABLE.level, g) for g in (0.0, 0.3, 1.0)),
        Resampling(FirstOrder(0.4, split=True)),
    ]
    climbing = (*(TABLE.level(t) for t in (999, 700, 400, 999, 700, 400, 100)), TABLE.level(0))
    for solver in solvers:
        for row in solver.rows(climbing if isinstance(solver, Resampling) else grid):
            data, variance = marginal(row)
            assert math.isclose(data, row.after.alpha, rel_tol=1e-9)
            if row.after != grid[-1] or not isinstance(solver, Renoising):
                assert math.isclose(variance, row.after.sigma**2, rel_tol=1e-9)


def test_trajectory_without_noise_is_ddim_and_with_all_goes_to_the_first_step() -> None:
    grid = (*(TABLE.level(t) for t in (999, 700, 400, 100)), TABLE.level(0))
    for row, other in zip(Trajectory(TABLE.level, 0.0).rows(grid), FirstOrder(split=True).rows(grid), strict=True):
        assert row == other
    low = TABLE.level(0)
    for row in Trajectory(TABLE.level, 1.0).rows(grid)[:-1]:
        assert math.isclose(row.direction, low.sigma * row.after.alpha / low.alpha, rel_tol=1e-12)
    assert Trajectory(TABLE.level, 0.3).past(TABLE.level(700)).t == 490  # and not 489, by rounding


def test_the_next_step_follows_the_output() -> None:
    """Only the last step of a consistency run is without noise; where one is drawn for nothing, it is 0."""
    grid = (*(preserving(9 - k, r) for k, r in enumerate((20.0, 5.0, 1.0))), preserving(-1, 0.0))
    assert [row.noise is None for row in Renoising().rows(grid)] == [False, False, True]
    assert Renoising(draw_last=True).rows(grid)[-1].noise == 0.0
    assert Renoising(draw_last=True).rows(grid[2:])[-1].noise is None
    assert math.isclose(Renoising(low=0.5, scale=2.0).rows(grid)[1].noise, 2 * math.sqrt(grid[2].sigma ** 2 - 0.25))


def test_a_climb_is_a_step_and_its_rises() -> None:
    """One row with one draw has the law of a step down followed by rises over the levels between."""
    a, low, middle, high = (TABLE.level(t) for t in (500, 400, 450, 500))
    down = FirstOrder(0.3, split=True).row(a, low, 10)
    whole = climb(down, high)
    twice = climb(climb(down, middle), high)
    assert whole.after == high
    for name in ("direction", "noise"):
        assert math.isclose(getattr(whole, name), getattr(twice, name), rel_tol=1e-9)
    assert math.isclose(whole.outputs[0], twice.outputs[0], rel_tol=1e-9)
    keep, fresh = rise(low, high)
    assert math.isclose(keep**2 * low.sigma**2 + fresh**2, high.sigma**2) and math.isclose(keep * low.alpha, high.alpha)


def test_walks_with_jumps() -> None:
    for count, length, samples in ((12, 3, 2), (30, 10, 10), (5, 10, 3), (9, 1, 2), (25, 4, 1)):
        walk = jumps(count, length, samples)
        assert set(walk) == set(range(count)) and walk[0] == count - 1 and walk[-1] == 0
        assert all(abs(a - b) == 1 for a, b in pairwise(walk))
        points = len(range(0, count - length, length))
        levels = climbing((*(TABLE.level(t) for t in range(count, -1, -1)),), walk)
        assert len(levels) - 1 == count + points * (samples - 1) * length and levels[-1] == TABLE.level(0)
    for wrong in ((5, 0, 1), (5, 1, 0)):
        with pytest.raises(InputError, match="at least 1"):
            jumps(*wrong)


def test_a_run_with_jumps_is_one_plan() -> None:
    """Network calls in the order of the documented loop, each row ending where the next begins."""
    scheduler = langevin.RePaintScheduler()
    scheduler.set_timesteps(12, jump_length=3, jump_n_sample=2)
    walk = scheduler.timesteps.tolist()
    plan = scheduler.plan(12, jump_length=3, jump_n_sample=2)
    asked = [walk[0], *(t for p, t in pairwise(walk) if t < p)]
    assert [step.timestep for step in plan.steps] == asked
    assert all(a.after == b.level for a, b in zip(plan.steps[:-1], plan.steps[1:], strict=True))
    down = scheduler.plan(12, jump_length=3, jump_n_sample=2, resample=False)
    for row, plain in zip(plan.rows, down.rows, strict=True):
        assert row == (plain if row.after == plain.after else climb(plain, row.after))
    assert sum(row.noise is not None for row in plan.rows) == 3  # one climb from each of three positions


def test_the_known_part_is_kept() -> None:
    plan = langevin.RePaintScheduler(clip_sample=False).plan(10, jump_length=2, jump_n_sample=2)
    mask = torch.zeros_like(DATA)
    mask[..., :2] = 1.0
    noise, seen = draws(), []
    edits = [keep_known(2 * DATA, mask, draws(3))]
    x = sample(exact, noise(), plan, noise=noise, after=edits, on_step=lambda step, x: seen.append(step.after))
    assert torch.equal(x[..., :2], 2 * DATA[..., :2]) and seen[-1].sigma == 0
    assert float((x[..., 2:] - DATA[..., 2:]).abs().max()) < 1e-9


def test_boundary_condition() -> None:
    """At t = 0 the estimate of the data is the sample itself, far away it is the network's."""
    level, x, output = preserving(0, 0.5), torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
    kinds = [Prediction("sample", boundary=Boundary(scale)) for scale in (10.0, 0.01)]
    assert torch.equal(kinds[0].data(x, output, level), x)
    assert torch.allclose(kinds[0].data(x, output, replace(level, t=900)), output)
    skip, out = Boundary(0.01)(replace(level, t=50))
    assert math.isclose(skip, 0.5) and math.isclose(out, math.sqrt(0.5))
    assert kinds[1].bounded and not Prediction().bounded


# ---- upwards ---------------------------------------------------------------------------------------------------------


def inverted(steps: int) -> tuple[float, float]:
    """Return the error of inversion on Gaussian data against the exact flow, and that of the way there and back."""
    mean, deviation = 0.7, 0.5
    ratios = np.exp(np.linspace(math.log(20.0), math.log(0.05), steps + 1))
    grid = tuple(preserving(steps - k, float(r)) for k, r in enumerate(ratios))
    told = {level.t: level for level in grid}

    def model(x, step):
        level = told[step.timestep]
        return level.sigma * (x - level.alpha * mean) / level.spread(deviation) ** 2

    x, low, high = torch.linspace(-2, 2, 21, dtype=torch.float64)[None], grid[-1], grid[0]
    noisy = sample(model, x, Plan(upwards(grid), FirstOrder(split=True), Prediction()))
    score = (x - low.alpha * mean) / low.spread(deviation)
    wanted = high.alpha * mean + score * high.spread(deviation)
    back = sample(model, noisy, Plan(grid, FirstOrder(split=True), Prediction()))
    return float((noisy - wanted).abs().max()), float((back - x).abs().max())


def test_inversion_is_of_first_order() -> None:
    coarse, fine = inverted(100), inverted(200)
    for a, b in zip(coarse, fine, strict=True):
        assert 0.8 < math.log2(a / b) < 1.3


def test_inversion_tells_the_end_of_each_step() -> None:
    scheduler = langevin.DDIMInverseScheduler(clip_sample=False)
    plan = scheduler.plan(5)
    assert [s.timestep for s in plan.steps] == [0, 200, 400, 600, 800]
    assert plan.steps[0].level.sigma == 0 and plan.steps[1].level.sigma == plan.steps[0].after.sigma > 0
    noise = draws()()
    x = sample(lambda x, step: noise, DATA, plan)
    end = plan.grid[-1]
    assert torch.allclose(x, end.alpha * DATA + end.sigma * noise, rtol=1e-12)
    assert [s.timestep for s in scheduler.plan(timesteps=[3, 70, 900]).steps] == [3, 70, 900]
    with pytest.raises(InputError, match="must ascend"):
        scheduler.plan(timesteps=[900, 70])


# ---- many levels at once ---------------------------------------------------------------------------------------------


def test_a_trajectory_ends_where_the_run_does() -> None:
    """Also below the table; without gamma there is no level past the next one."""
    grid = langevin.DDIMScheduler().plan(sigmas=[9.0, 1.5, 0.0]).grid
    for gamma in (0.0, 0.3):
        rows = Trajectory(TABLE.level, gamma).rows(grid)
        assert rows[-1].after == grid[-1] and rows[-1].noise is None
    assert [row.after for row in Trajectory(TABLE.level, 0.0).rows(grid)] == list(grid[1:])


def test_steps_of_many_levels_are_those_one_by_one() -> None:
    for config in ({}, {"prediction_type": "v_prediction", "thresholding": True, "clip_sample": False}):
        scheduler = langevin.DDPMParallelScheduler(**config)
        plan = scheduler.plan(6)
        x = torch.randn(6, 2, 4, 4, generator=seeded(), dtype=torch.float64)
        output = network(x, 500)
        together = step_each(plan, range(6), x, output)
        for k, row in enumerate(plan.rows):
            alone = plan.begin().apply(plan.move(replace(row, noise=None)), x[k : k + 1], output[k : k + 1])
            assert torch.allclose(together[k : k + 1], alone, rtol=1e-9, atol=1e-12)
    half = step_each(plan, range(6), x.half(), output.half())
    assert half.dtype == torch.float16 and torch.allclose(half.double(), together, atol=1e-2)
    with pytest.raises(InputError, match="eta must be 0"):
        langevin.DDIMParallelScheduler().batch_step_no_noise(x, torch.tensor([1]), x, eta=0.5)


# ---- protocol --------------------------------------------------------------------------------------------------------

STOCHASTIC = (
    "LCMScheduler",
    "TCDScheduler",
    "CMStochasticIterativeScheduler",
    "UnCLIPScheduler",
    "DDPMParallelScheduler",
)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_each_image_is_the_one_made_alone(name: str) -> None:
    scheduler = getattr(langevin, name)()
    scheduler.set_timesteps(4)
    both = protocol(scheduler, generator=[seeded(1), seeded(2)])[-1]
    x = first_noise()[1:] * scheduler.init_noise_sigma
    alone = protocol(scheduler, x=x, generator=seeded(2))[-1]
    assert torch.allclose(both[1:], alone, rtol=1e-5, atol=1e-6)


def test_errors() -> None:
    with pytest.raises(InputError, match="only 50"):
        langevin.LCMScheduler().set_timesteps(51)
    with pytest.raises(InputError, match="only 1000"):
        langevin.LCMScheduler().set_timesteps(4, original_inference_steps=2000)
    cm = langevin.CMStochasticIterativeScheduler()
    for wrong, match in (([0, 22], "descend"), ([40, 1], r"in \[0, 39\]"), ([3.5], "whole numbers")):
        with pytest.raises(InputError, match=match):
            cm.set_timesteps(timesteps=wrong)
    with pytest.raises(ConfigError, match="sigma_min"):
        langevin.CMStochasticIterativeScheduler(sigma_min=0.0)
    unclip, x = langevin.UnCLIPScheduler(), first_noise()
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        langevin.TCDScheduler().step(x, 999, x, eta=1.2)
    with pytest.raises(InputError, match="below the timestep 5"):
        unclip.step(x, 5, x, prev_timestep=5)
    with pytest.raises(InputError, match="fixed_small_log"):
        langevin.UnCLIPScheduler(variance_type="fixed_small")


def test_own_levels_of_few_step_samplers() -> None:
    """Own sigmas work in every sampler; the end of the list is where the run ends."""
    for name in ("LCMScheduler", "TCDScheduler", "UnCLIPScheduler", "CMStochasticIterativeScheduler"):
        scheduler = getattr(langevin, name)()
        scheduler.set_timesteps(sigmas=[10.0, 2.0, 0.5, 0.1])
        assert torch.allclose(scheduler.sigmas, torch.tensor([10.0, 2.0, 0.5, 0.1])) and len(scheduler.timesteps) == 3
        assert torch.isfinite(protocol(scheduler, generator=seeded())[-1]).all()
