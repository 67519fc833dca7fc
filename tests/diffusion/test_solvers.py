"""Solvers as tables: exact noise gives exact data, exact data distributions give the order, rows add up."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import langevin
from langevin.diffusion import Plan, Prediction, sample
from langevin.diffusion.process import preserving
from langevin.diffusion.solvers import ALGORITHMS, Churn, DPMMultistep, FirstOrder, Posterior, PseudoNumerical
from tests.schedulers.oracle import NAMES, STABLE, seeded

DATA = torch.full((1, 2, 4, 4), 0.3, dtype=torch.float64)


def draw() -> torch.Tensor:
    return torch.randn(DATA.shape, generator=draw.generator, dtype=torch.float64)


draw.generator = seeded(5)


def distance(plan: Plan) -> float:
    """Return how far a run ends from the data when the network returns the exact noise of its sample."""
    end = plan.grid[-1]
    x = plan.start(draw(), DATA)

    def exact(x, step):
        noise = (x - step.level.alpha * DATA) / step.level.sigma
        if plan.prediction.kind == "epsilon":
            return noise
        return (step.level.alpha * noise - step.level.sigma * DATA) / step.level.norm

    x = sample(exact, x, plan, noise=draw)
    return float((x - end.alpha * DATA).abs().max()) if end.sigma == 0 else 0.0


def configurations(name: str):
    clean = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}.get(name, {})
    spacings = [{"timestep_spacing": s} for s in ("leading", "trailing", "linspace")]
    if name == "PNDMScheduler":
        clean = {"set_alpha_to_one": True}
        spacings = [{**s, "skip_prk_steps": skip} for s, skip in itertools.product(spacings, (True, False))]
    if name == "EulerDiscreteScheduler":
        spacings += [{f"use_{k}_sigmas": True} for k in ("karras", "exponential", "beta")] + [
            {"interpolation_type": "log_linear"}
        ]
    if name == "DPMSolverMultistepScheduler":
        spacings += [{"use_karras_sigmas": True}, {"use_lu_lambdas": True}, {"solver_order": 3, "solver_type": "heun"}]
        spacings += [{"algorithm_type": "sde-dpmsolver++", "solver_order": order} for order in (1, 2, 3)]
    return [{**STABLE, **clean, **s} for s in spacings]


@pytest.mark.parametrize("name", NAMES)
def test_exact_noise_gives_the_data(name: str) -> None:
    """For every sampler, spacing, number of steps and start inside the schedule."""
    for config in configurations(name):
        scheduler = getattr(langevin, name)(**config)
        for steps in (1, 2, 3, 7, 50, 61, 1000):
            if steps == 1000 and config.get("timestep_spacing") != "trailing":
                continue
            plan = scheduler.plan(steps)
            assert distance(plan) < 1e-9, (config, steps)
            for strength in () if steps > 100 else (0.02, 0.3, 0.51, 0.99, 1.0):
                tail = plan.tail(strength)
                assert distance(tail) < 1e-9, (config, steps, strength)
            for first in () if steps > 10 else range(len(plan.steps)):
                assert distance(plan.part(first)) < 1e-9, (config, steps, first)


def test_exact_velocity_from_pure_noise() -> None:
    for name, eta in (("DDIMScheduler", 0.0), ("DDIMScheduler", 1.0), ("DDPMScheduler", None)):
        scheduler = getattr(langevin, name)(
            rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction", clip_sample=False
        )
        plan = scheduler.plan(10, **({} if eta is None else {"eta": eta}))
        assert plan.steps[0].level.alpha == 0.0
        assert distance(plan) < 1e-9


MEAN, DEVIATION = 0.7, 0.5


def gaussian_error(solver, steps: int) -> float:
    """Return the error on Gaussian data, whose probability flow keeps standard scores, from sigma/alpha 20 to 0.05."""
    ratios = np.exp(np.linspace(math.log(20.0), math.log(0.05), steps + 1))
    grid = tuple(preserving(999 - k, float(r)) for k, r in enumerate(ratios))
    a, b = grid[0], grid[-1]

    def spread(level):
        return math.hypot(level.alpha * DEVIATION, level.sigma)

    def exact(x, step):
        level = step.level
        return level.sigma * (x - level.alpha * MEAN) / spread(level) ** 2

    x = torch.linspace(-2, 2, 21, dtype=torch.float64)[None]
    wanted = b.alpha * MEAN + (x - a.alpha * MEAN) / spread(a) * spread(b)
    return float((sample(exact, x, Plan(grid, solver, Prediction())) - wanted).abs().max())


def middle(a, b):
    return preserving(0.5, math.sqrt(a.ratio * b.ratio))


def multistep(order: int, algorithm: str, **options) -> DPMMultistep:
    return DPMMultistep(order=order, algorithm=algorithm, lower_order_final=False, **options)


ORDERS = [
    (FirstOrder(), 1),
    (FirstOrder(split=True), 1),
    (PseudoNumerical(), 2),
    (PseudoNumerical(middle=middle), 2),
    *[(multistep(o, a), min(o, 2)) for a in ("dpmsolver", "dpmsolver++") for o in (1, 2, 3)],
    *[(multistep(2, a, midpoint=False), 2) for a in ("dpmsolver", "dpmsolver++")],
    *[(multistep(3, a, exact_third=True), 3) for a in ("dpmsolver", "dpmsolver++")],
]


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_observed_order(solver, order: int) -> None:
    """The error falls by 2^order when the steps are doubled; third order needs its exact weight, see DPMMultistep."""
    coarse, fine = gaussian_error(solver, 40), gaussian_error(solver, 80)
    observed = math.log2(coarse / fine)
    assert order - 0.15 < observed < order + 0.35 + (order == 3)


def test_ddim_euler_and_first_order_dpm_are_one_row() -> None:
    """On the same levels the three are the same step, in the space where each keeps its samples."""
    times = [999, 700, 400, 100]
    ddim = langevin.DDIMScheduler(**STABLE, clip_sample=False).plan(timesteps=times)
    euler = langevin.EulerDiscreteScheduler(**STABLE).plan(timesteps=times)
    dpm = langevin.DPMSolverMultistepScheduler(**STABLE, solver_order=1).plan(timesteps=times)
    for d, e, m in zip(ddim.rows, euler.rows, dpm.rows, strict=True):
        k = d.direction / d.level.sigma
        assert math.isclose(k, m.sample, abs_tol=1e-12)
        assert math.isclose(d.outputs[0] - d.level.alpha * k, m.outputs[0], rel_tol=1e-9)
        assert math.isclose(e.sample * d.after.alpha / d.level.alpha, m.sample, abs_tol=1e-12)


def test_ddim_with_eta_one_is_ddpm() -> None:
    times = [999, 700, 400, 100]
    ddim = langevin.DDIMScheduler(**STABLE).plan(timesteps=times, eta=1.0, use_clipped_model_output=True)
    ddpm = langevin.DDPMScheduler(**STABLE).plan(timesteps=times)
    for a, b in zip(ddim.rows, ddpm.rows, strict=True):
        assert np.allclose([a.sample, *a.outputs, a.noise], [b.sample, *b.outputs, b.noise], atol=1e-12)


def test_rows_keep_variance_preserving_samples_preserved() -> None:
    """With x_0 and eps of unit variance the linear part and the noise of each row give the level's own variance."""
    grid = (*(preserving(9 - k, r) for k, r in enumerate([20.0, 5.0, 1.0, 0.2])), preserving(-1, 0.0))
    for solver in (FirstOrder(eta=0.7), FirstOrder(eta=1.0), Posterior(), multistep(1, "sde-dpmsolver++")):
        for row in solver.rows(grid):
            a, b = row.level, row.after
            data, noise = row.sample * a.alpha + row.outputs[0], row.sample * a.sigma
            assert math.isclose(data, b.alpha, rel_tol=1e-9)
            assert math.isclose(noise**2 + (row.noise or 0.0) ** 2, b.sigma**2, rel_tol=1e-9, abs_tol=1e-12)


def test_rows_need_little_history() -> None:
    plans = [langevin.PNDMScheduler(skip_prk_steps=skip).plan(20) for skip in (True, False)] + [
        langevin.DPMSolverMultistepScheduler(solver_order=3, algorithm_type=a, final_sigmas_type="sigma_min").plan(20)
        for a in ALGORITHMS
    ]
    for plan in plans:
        held = 0
        for row in plan.rows:
            assert len(row.outputs) <= held + 1
            assert all(k <= held for k in row.keep)
            held = len(row.keep)
        assert max(len(row.keep) for row in plan.rows) <= 5


def test_churn_raises_only_inside_its_band() -> None:
    churn = Churn(amount=100.0, low=0.5, high=10.0)
    level = preserving(3, 1.0).exploding()
    assert math.isclose(churn.raised(level, 10).sigma, math.sqrt(2.0))
    high = preserving(3, 11.0).exploding()
    assert churn.raised(high, 10) == high
    grid = (high, level, preserving(-1, 0.0))
    lifts = [row.lift for row in FirstOrder(churn=churn).rows(grid)]
    assert lifts[0] is None and math.isclose(lifts[1], 1.0)


def test_slices_share_one_run() -> None:
    """Two models that split the schedule make together exactly the steps of one."""
    for name in ("EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"):
        plan = getattr(langevin, name)(**STABLE).plan(25)
        first, second = plan.slice(end=0.8), plan.slice(start=0.8)
        assert [s.timestep for s in first.steps + second.steps] == [s.timestep for s in plan.steps]
        assert all(s.timestep >= 200 for s in first.steps) and all(s.timestep < 200 for s in second.steps)
        assert first.steps[-1].last and first.steps[-1].after == second.steps[0].level
        assert second.steps[0].index == 0 and second.steps[0].count == len(second.steps)
