"""Align-your-steps levels, restart, churn around any solver, randomness per step, and schedulers that use them."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion import Plan, Prediction, sample
from langevin.diffusion.grid import ALIGNED, align_your_steps, exponential
from langevin.diffusion.levels import at_flow, interpolated
from langevin.diffusion.process import Level, flow, preserving
from langevin.diffusion.solvers import (
    Churn,
    Churned,
    DPMMultistep,
    FirstOrder,
    Heun,
    Posterior,
    PseudoNumerical,
    Restart,
)
from tests.diffusion.test_solvers_score import gaussian, moments
from tests.schedulers.oracle import STABLE, seeded

SD, XL, VIDEO = ALIGNED
HIGH, LOW = 20.0, 0.02
MEAN, DEVIATION = 0.7, 0.5
JUMPS = ((0.1, 0.5, 2, 4), (0.6, 3.0, 1, 3))


def levels(steps: int, kind: str = "exploding"):
    """Return a grid from HIGH to LOW whose timesteps are a known function of the level."""
    ratios = exponential(steps + 1, HIGH, LOW)
    if kind == "exploding":
        return tuple(Level(0.25 * math.log(r), 1.0, float(r)) for r in ratios)
    return tuple(preserving(0.25 * math.log(r), float(r)) for r in ratios)


# ---- levels -------------------------------------------------------------------------------------------------------


def test_published_levels() -> None:
    """The reference values of the paper's page; ten steps are the published levels themselves."""
    assert align_your_steps(SD, 10, end=None) == list(ALIGNED[SD])
    assert align_your_steps(XL)[:4] == [14.615, 6.315, 3.771, 2.181]
    assert align_your_steps(VIDEO)[-2:] == [0.034, 0.0]
    assert all(len(table) == 11 and list(table) == sorted(table, reverse=True) for table in ALIGNED.values())


@pytest.mark.parity
def test_published_levels_are_the_peers() -> None:
    from diffusers.schedulers import AysSchedules

    for ours, theirs in ((SD, "StableDiffusion"), (XL, "StableDiffusionXL"), (VIDEO, "StableDiffusionVideo")):
        assert align_your_steps(ours) == AysSchedules[f"{theirs}Sigmas"]


@pytest.mark.parametrize("count", [1, 5, 20, 37])
def test_other_numbers_of_steps_are_interpolated_in_the_logarithm(count: int) -> None:
    made = align_your_steps(SD, count, end=None)
    assert len(made) == count + 1 and made[0] == pytest.approx(14.615) and made[-1] == pytest.approx(0.029)
    assert made == sorted(made, reverse=True)
    if count == 5:
        assert np.allclose(made, ALIGNED[SD][::2])
    if count == 20:
        assert np.allclose(made[1], math.sqrt(14.615 * 6.475))
    assert align_your_steps(SD, count)[-1] == 0.0


def test_aligned_levels_serve_every_sampler() -> None:
    for name in ("EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"):
        scheduler = getattr(langevin, name)(**STABLE)
        scheduler.set_timesteps(sigmas=align_your_steps(SD, 7))
        assert len(scheduler.timesteps) == 7
        assert np.allclose([v.ratio for v in scheduler.plan().grid[:-1]], align_your_steps(SD, 7)[:-1], rtol=1e-6)
    with pytest.raises(InputError, match="did you mean 'stable-diffusion-xl'"):
        align_your_steps("stable-difusion-xl")
    with pytest.raises(InputError, match="at least 1"):
        align_your_steps(SD, 0)


def test_levels_between_those_of_a_grid() -> None:
    for kind in ("exploding", "preserving"):
        made = interpolated(levels(7, kind), 0.77)
        assert math.isclose(made.ratio, 0.77) and math.isclose(made.t, 0.25 * math.log(0.77), rel_tol=1e-6)
    straight = interpolated(at_flow(np.linspace(0.999, 0, 8)[:-1], 1000, flow(0, 0.0)), 0.5)
    assert math.isclose(straight.sigma, 1 / 3) and abs(straight.t - 1000 / 3) < 1
    whole = langevin.DDIMScheduler(**STABLE).plan(10).grid
    assert isinstance(interpolated(whole, 1.0).t, int)
    with pytest.raises(ConfigError, match="no known process"):
        interpolated((Level(2, 0.5, 3.0), Level(1, 0.5, 1.0)), 1.0)


# ---- restart ------------------------------------------------------------------------------------------------------


def test_restart_declares_its_calls() -> None:
    grid = levels(10)
    for inner, calls in ((FirstOrder(), lambda n: n), (Heun(), lambda n: 2 * n)):
        plain, plan = (Plan(grid, solver, Prediction()) for solver in (inner, Restart(inner, JUMPS)))
        assert len(plan.steps) == len(plain.steps) + calls(2 * 4 + 1 * 3)
        assert [step.count for step in plan.steps] == [len(plan.steps)] * len(plan.steps)
        ups = [step for step in plan.steps if step.after.ratio > step.level.ratio]
        assert [round(step.after.ratio, 9) for step in ups] == [3.0, 0.5, 0.5]
        assert [step.level for step in plan.steps][-1] == plain.steps[-1].level
        assert all(a.after == b.level for a, b in zip(plan.steps, plan.steps[1:], strict=False))


def test_a_jump_is_noise_after_the_row_before_it() -> None:
    grid = levels(6, "preserving")
    rows, plain = Restart(FirstOrder(eta=0.5), ((0.1, 0.5, 1, 2),)).rows(grid), FirstOrder(eta=0.5).rows(grid)
    k = next(k for k, row in enumerate(rows) if row.after.ratio > row.level.ratio)
    row, before = rows[k], plain[k]
    factor = row.after.alpha / before.after.alpha
    assert math.isclose(row.sample, factor * before.sample) and math.isclose(row.outputs[0], factor * before.outputs[0])
    total = (factor * before.after.sigma) ** 2 + row.noise**2 - (factor * before.noise) ** 2
    assert math.isclose(total, row.after.sigma**2)
    assert row.keep == ()


@pytest.mark.parametrize("kind", ["exploding", "preserving"])
def test_restart_keeps_gaussian_data(kind: str) -> None:
    """With the exact denoiser mean and variance are kept, up to the solver's and the statistical error."""
    solvers = (Heun(), DPMMultistep(order=2), PseudoNumerical(), FirstOrder(eta=1.0))
    for inner in solvers:
        jumps = [(*jump[:3], 25) for jump in JUMPS] if isinstance(inner, FirstOrder) else JUMPS
        mean, deviation = moments(Plan(levels(60, kind), Restart(inner, tuple(jumps)), Prediction()), 8000)
        wanted = levels(1, kind)[-1]
        assert abs(mean - wanted.alpha * MEAN) < 0.03
        bound = 0.1 if isinstance(inner, FirstOrder) else 0.04
        assert abs(deviation / wanted.spread(DEVIATION) - 1) < bound, inner


def test_restart_contracts_errors() -> None:
    """What the method is for: of an error made above the interval, the noise leaves less."""
    grid, gaps = levels(40), []
    for solver in (Heun(), Restart(Heun(), ((0.2, 5.0, 3, 20),))):
        plan, ends = Plan(grid, solver, Prediction()), []
        for shift in (0.0, 2.0):
            generator = seeded(2)

            def draw(generator=generator):
                return torch.randn(1, 2000, generator=generator, dtype=torch.float64)

            x = HIGH * draw() + shift * HIGH
            ends.append(sample(gaussian, x, plan, noise=draw))
        gaps.append(float((ends[1] - ends[0]).abs().mean()))
    assert gaps[1] < 0.01 * gaps[0]


@pytest.mark.parametrize("inner", [FirstOrder(), Heun(), DPMMultistep(order=2), PseudoNumerical()])
def test_runs_with_jumps_may_begin_anywhere(inner) -> None:
    """The exact noise of one data point leads to it from every call, and the tail starts before its jumps."""
    data = torch.full((1, 4), 0.3, dtype=torch.float64)
    grid = (*levels(6, "preserving")[:-1], preserving(-1, 0.0))
    plan = Plan(grid, Restart(inner, ((0.2, 7.0, 1, 2),)), Prediction())
    generator = seeded(1)

    def draw():
        return torch.randn(data.shape, generator=generator, dtype=torch.float64)

    parts = [plan, plan.tail(0.99), plan.tail(0.5), *(plan.part(k) for k in range(len(plan.steps)))]
    for part in parts:
        x = part.start(draw(), data)
        x = sample(lambda x, s: (x - s.level.alpha * data) / s.level.sigma, x, part, noise=draw)
        assert float((x - data).abs().max()) < 1e-9
    assert any(step.after.ratio > step.level.ratio for step in plan.tail(0.99).steps)
    assert len(plan.rows) - len(plan.part(3).rows) == 3


def test_restart_refuses_what_cannot_be() -> None:
    for interval in ((0.5, 0.1, 2, 3), (0.1, 0.5, 0, 3), (0.1, 0.5, 1, 1.5), (0.1, 0.5)):
        with pytest.raises(ConfigError, match="no interval of Restart"):
            Restart(FirstOrder(), (interval,))
    for interval in ((0.1, 50.0, 1, 3), (1e-3, 2e-3, 1, 3)):
        with pytest.raises(InputError, match="does not fit"):
            Restart(FirstOrder(), (interval,)).rows(levels(10))
    with pytest.raises(InputError, match="more steps"):
        Restart(FirstOrder(), JUMPS).rows((levels(1)[0], Level(-1, 1.0, 0.0)))
    with pytest.raises(ConfigError, match="learned variance"):
        Restart(Posterior("learned"), JUMPS).rows(tuple(preserving(9 - k, v.sigma) for k, v in enumerate(levels(10))))


# ---- churn and strength per step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exploding", "preserving"])
def test_churn_keeps_gaussian_data(kind: str) -> None:
    churn = Churn(amount=20.0, low=0.05, high=10.0)
    for inner in (Heun(), FirstOrder(eta=0.3)):
        mean, deviation = moments(Plan(levels(80, kind), Churned(inner, churn), Prediction()), 8000)
        wanted = levels(1, kind)[-1]
        assert abs(mean - wanted.alpha * MEAN) < 0.03
        bound = 0.1 if isinstance(inner, FirstOrder) else 0.04
        assert abs(deviation / wanted.spread(DEVIATION) - 1) < bound, inner


def test_churn_asks_at_the_raised_levels() -> None:
    grid = levels(8)
    churn = Churn(amount=2.0, low=0.1, high=5.0, noise=1.5)
    rows = Churned(FirstOrder(), churn).rows(grid)
    assert len(rows) == 8
    for k, (row, level) in enumerate(zip(rows, grid, strict=False)):
        inside = k > 0 and 0.1 <= level.sigma <= 5.0
        assert math.isclose(row.level.sigma, level.sigma * (1.25 if inside else 1.0))
        if inside:
            assert math.isclose(rows[k - 1].noise, 1.5 * math.sqrt(row.level.sigma**2 - level.sigma**2))
            assert math.isclose(row.level.t, 0.25 * math.log(row.level.sigma), rel_tol=1e-9)
    plain = Churned(DPMMultistep(order=3), Churn(amount=0.0)).rows(grid)
    assert plain == DPMMultistep(order=3).rows(grid)
    with pytest.raises(InputError, match="noise to data"):
        Churned(FirstOrder(), churn).rows(grid[::-1])


def test_a_constant_per_step_is_the_constant() -> None:
    grid = levels(6, "preserving")
    for eta in ([0.4] * 6, (0.4,) * 6, lambda index, level: 0.4):
        assert FirstOrder(eta=eta).rows(grid) == FirstOrder(eta=0.4).rows(grid)
        assert FirstOrder(eta=eta, split=True).rows(grid, 2) == FirstOrder(eta=0.4, split=True).rows(grid, 2)
    for amount in ([3.0] * 6, lambda index, level: 3.0):
        churn, constant = Churn(amount, high=5.0), Churn(3.0, high=5.0)
        assert FirstOrder(churn=churn).rows(grid) == FirstOrder(churn=constant).rows(grid)
        assert Churned(Heun(), churn).rows(grid) == Churned(Heun(), constant).rows(grid)


def test_strength_per_step() -> None:
    grid = levels(4)
    rows = FirstOrder(eta=[0.0, 1.0, 0.5, 0.0]).rows(grid)
    assert [row.noise is None for row in rows] == [True, False, False, True]
    assert rows[1] == FirstOrder(eta=1.0).rows(grid)[1] and rows[2] == FirstOrder(eta=0.5).rows(grid)[2]
    late = FirstOrder(eta=lambda index, level: float(level.sigma < 1.0)).rows(grid)
    assert [row.noise is not None for row in late] == [level.sigma < 1.0 for level in grid[:-1]]
    plan = langevin.DDIMScheduler(**STABLE).plan(3, eta=[0.0, 0.5, 1.0])
    assert [row.noise is not None for row in plan.rows] == [False, True, True]
    with pytest.raises(InputError, match="`eta` holds 3 numbers, but the run has 4 steps"):
        FirstOrder(eta=[0.1, 0.2, 0.3]).rows(grid)
    with pytest.raises(InputError, match="negative"):
        FirstOrder(eta=lambda index, level: -1.0).rows(grid)
    for wrong in ("x", ["x", 0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="`eta` is 'x' at step 0; it must be a number that is not negative"):
            FirstOrder(eta=wrong).rows(grid)
    with pytest.raises(InputError, match="has no number; pass a single number"):
        FirstOrder(eta=[0.1, 0.2]).row(grid[0], grid[1], 2)


# ---- schedulers ---------------------------------------------------------------------------------------------------


def euler():
    return langevin.EulerDiscreteScheduler(**STABLE)


def test_using_leaves_the_scheduler_alone() -> None:
    scheduler = euler()
    scheduler.set_timesteps(8)
    other = scheduler.using(solver=Restart(Heun(), ((0.3, 2.0, 2, 2),)))
    assert len(other.plan(8).steps) == 2 * 8 - 1 + 2 * 2 * 2
    assert len(scheduler.timesteps) == 8 and len(scheduler.plan(8).steps) == 8
    assert other.num_inference_steps is None and other.config == scheduler.config
    both = other.using(grid=lambda grid: grid[::2])
    assert both.plan(8).grid == scheduler.plan(8).grid[::2]
    assert len(both.plan(8).steps) == 2 * 4 - 1 + 2 * 2 * 2


def test_what_was_used_outlives_another_class() -> None:
    """Solver and every function of levels, in their order."""
    given = euler().using(grid=lambda grid: grid[::2]).using(solver=Heun()).using(grid=lambda grid: grid[1:])
    made = given.turned_into(langevin.LMSDiscreteScheduler, timestep_spacing="trailing")
    own = langevin.LMSDiscreteScheduler(**STABLE, timestep_spacing="trailing")
    assert type(made) is type(own) and made.plan(8).solver == Heun() == given.plan(8).solver
    assert made.plan(8).grid == own.plan(8).grid[::2][1:]
    assert own.turned_into(type(own), steps_offset=1).plan(8).solver == own.plan(8).solver


def test_a_jump_where_sigmas_cannot_be_named_keeps_its_interpolated_timesteps() -> None:
    flow_sigmas = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    scheduler = langevin.DPMSolverMultistepScheduler(**flow_sigmas)
    rows = scheduler.using(solver=Restart(FirstOrder(), ((0.3, 2.0, 1, 3),))).plan(8).rows
    jump = next(row.after for row in rows if row.after.ratio > row.level.ratio)
    assert math.isclose(jump.ratio, 2.0) and abs(jump.t - 1000 * jump.sigma) <= 1


def test_levels_of_a_jump_have_the_timesteps_of_the_process() -> None:
    for scheduler in (euler(), langevin.DDIMScheduler(**STABLE), langevin.DPMSolverMultistepScheduler(**STABLE)):
        plan = scheduler.using(solver=Restart(FirstOrder(), ((0.3, 2.0, 1, 3),))).plan(6)
        for step in plan.steps:
            told = step.timestep
            assert abs(scheduler.process.time(step.level.ratio) - told) <= (0.51 if isinstance(told, int) else 0.05)


def test_the_protocol_walks_through_the_jumps() -> None:
    """Also where a jump leads back to the first level."""
    scheduler = euler().using(solver=Restart(FirstOrder(), ((0.3, euler().plan(5).grid[0].sigma, 2, 2),)))
    scheduler.set_timesteps(5)
    plan, ends = scheduler.plan(5), []
    assert scheduler.timesteps.tolist() == [pytest.approx(step.timestep) for step in plan.steps]
    start = torch.randn(1, 2, 4, 4, generator=seeded(1)) * plan.init_noise_sigma
    for _ in range(2):
        generator, x = seeded(3), start
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x, generator=generator).prev_sample
        ends.append(x)
    generator = seeded(3)
    planned = sample(
        lambda x, step: torch.tanh(x * step.in_scale),
        start,
        plan,
        noise=lambda: torch.randn(start.shape, generator=generator),
    )
    assert torch.equal(ends[0], ends[1])
    assert torch.allclose(ends[0], planned, atol=1e-5)


def test_such_a_scheduler_is_copied_but_not_saved(tmp_path) -> None:
    made = langevin.DDIMScheduler(**STABLE).using(solver=Restart(FirstOrder(), ((0.3, 2.0, 1, 2),)))
    for same in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert [s.timestep for s in same.plan(6).steps] == [s.timestep for s in made.plan(6).steps]
    for save in (made.save_pretrained, made.save_config):
        with pytest.raises(ConfigError, match="cannot be saved"):
            save(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="eta: no option"):
        made.plan(6, eta=0.5)
    assert len(langevin.DDIMScheduler.from_config(made.config).plan(6).steps) == 6
