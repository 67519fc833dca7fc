"""Two-stage and multistep solvers: order, exact noise, polynomials, Brownian increments, starts inside a step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import langevin
from langevin.diffusion import Plan, Prediction, sample
from langevin.diffusion.process import Level, angular, flow, preserving
from langevin.diffusion.solvers import AdamsBashforth, BrownianMidpoint, Heun, LinearMultistep, Midpoint
from langevin.diffusion.solvers.linear_multistep import interpolation_weights
from tests.diffusion.test_solvers import DATA, DEVIATION, MEAN, STABLE, distance, draw, gaussian_error

NAMES = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "LMSDiscreteScheduler",
)


def at(ratio: float) -> Level:
    return preserving(0.5, ratio)


@pytest.mark.parametrize("name", NAMES)
def test_exact_noise_gives_the_data(name: str) -> None:
    """For every spacing, number of steps and start, between the two calls of a step too."""
    spacings = [{"timestep_spacing": s} for s in ("leading", "trailing", "linspace", "k_diffusion")]
    for config in [*spacings, *({f"use_{k}_sigmas": True} for k in ("karras", "exponential", "beta"))]:
        scheduler = getattr(langevin, name)(**STABLE, **config)
        for steps in (1, 2, 3, 7, 50):
            plan = scheduler.plan(steps)
            assert len(plan.steps) == (2 * steps - 1 if scheduler.order == 2 else steps)
            assert distance(plan) < 1e-9, (config, steps)
            for strength in (0.3, 0.51, 1.0):
                assert distance(plan.tail(strength)) < 1e-9, (config, steps, strength)
            for first in () if steps > 10 else range(len(plan.steps)):
                part = plan.part(first)
                assert len(part.steps) == len(plan.steps) - first
                assert distance(part) < 1e-9, (config, steps, first)


def flowing(plan: Plan) -> float:
    """Return how far a flow run ends from the data when the network returns the exact direction."""
    sign = -1.0 if plan.prediction.scaling else 1.0

    def exact(x, step):
        noise = (x - step.level.alpha * DATA) / step.level.sigma
        return sign * (noise - DATA)

    return float((sample(exact, plan.start(draw(), DATA), plan, noise=draw) - DATA).abs().max())


def test_exact_direction_gives_the_data() -> None:
    for config in (
        {}, {"shift": 3.0}, {"invert_sigmas": True}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1},
        {"stochastic_sampling": True},
    ):  # fmt: skip
        for steps in (1, 2, 7, 50):
            plan = langevin.FlowMatchEulerDiscreteScheduler(**config).plan(steps)
            assert len(plan.steps) == steps and flowing(plan) < 1e-9
            assert all(flowing(plan.part(k)) < 1e-9 for k in range(min(steps, 7)))
    for steps in (1, 2, 7):
        plan = langevin.FlowMatchHeunDiscreteScheduler(shift=3.0).plan(steps)
        assert len(plan.steps) == 2 * steps - 1
        assert all(flowing(plan.part(k)) < 1e-9 for k in range(len(plan.steps)))
    for steps in (1, 5, 30):
        plan = langevin.IPNDMScheduler().plan(steps)
        assert plan.steps[0].level.alpha == 0.0
        assert all(distance(plan.part(k)) < 1e-9 for k in range(steps))


@pytest.mark.parametrize(
    ("solver", "order"),
    [(Heun(), 2), (Midpoint(at), 2), (AdamsBashforth(), 2), *((LinearMultistep(p), p) for p in (1, 2, 3, 4))],
)
def test_observed_order(solver, order: int) -> None:
    """The error falls by 2^order when the steps are doubled; the multistep methods begin with a step of first order."""
    observed = math.log2(gaussian_error(solver, 40) / gaussian_error(solver, 80))
    assert order - 0.15 - 0.1 * (order > 2) * (order - 1) < observed < order + 0.35


def test_order_of_heun_along_a_flow() -> None:
    def error(steps: int) -> float:
        grid = tuple(flow(1000 * s, float(s)) for s in np.linspace(1.0, 0.02, steps + 1))

        def direction(x, step):
            a, s = step.level.alpha, step.level.sigma
            spread = a * DEVIATION**2 * -1 + s
            return -MEAN + spread * (x - a * MEAN) / ((a * DEVIATION) ** 2 + s**2)

        x = torch.linspace(-2, 2, 21, dtype=torch.float64)[None]
        end = grid[-1]
        wanted = end.alpha * MEAN + x * math.hypot(end.alpha * DEVIATION, end.sigma)
        made = sample(direction, x, Plan(grid, Heun(), Prediction("flow_prediction")))
        return float((made - wanted).abs().max())

    assert 1.85 < math.log2(error(40) / error(80)) < 2.6


def test_weights_integrate_polynomials() -> None:
    """Through p points every polynomial below degree p is integrated exactly, on unequal steps and down to 0."""
    points = [1.3, 2.1, 4.0, 14.6]
    for count in (1, 2, 3, 4):
        for end in (0.9, 0.0):
            weights = interpolation_weights(points[:count], end)
            for power in range(count):
                made = sum(w * p**power for w, p in zip(weights, points, strict=False))
                assert math.isclose(made, (end ** (power + 1) - 1.3 ** (power + 1)) / (power + 1), rel_tol=1e-12)
    assert interpolation_weights([2.0, 3.0], 2.0) == (0.0, 0.0)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("space", [lambda level: level, Level.exploding])
def test_brownian_increments(space, strength: float) -> None:
    """Both rows of a step draw from one path: the second continues the increment of the first."""
    a, b = space(preserving(9, 5.0)), space(preserving(4, 1.2))

    def placed(ratio):
        return space(preserving(0.5, ratio))

    first, second = BrownianMidpoint(placed, strength=strength).step(a, b)
    m = first.after
    x, d1, d2, z1, z2 = 0.7, -0.3, 0.45, 1.1, -0.8
    middle = first.sample * x + first.outputs[0] * d1 + first.noise * z1
    made = second.saved * x + second.sample * middle + second.outputs[0] * d2 + second.outputs[1] * d1
    made += second.noise * z2
    width = a.ratio - b.ratio
    path = (math.sqrt(a.ratio - m.ratio) * z1 + math.sqrt(m.ratio - b.ratio) * z2) / math.sqrt(width)
    up = b.ratio * math.sqrt(1 - (b.ratio / a.ratio) ** 2)
    down = math.sqrt(b.ratio**2 - up**2)
    wanted = b.alpha * (down / a.ratio * x / a.alpha + (1 - down / a.ratio) * d2 + up * strength * path)
    assert math.isclose(made, wanted, rel_tol=1e-9)
    still = BrownianMidpoint(placed, strength=0.0).step(a, b)
    assert all(row.noise is None for row in still) and still[1].sample == 0


def test_ancestral_middle_is_the_next_level() -> None:
    """The step down aims at sigma_b^2 / sigma_a, so half way in log sigma lies b."""
    a, b = preserving(9, 5.0).exploding(), preserving(4, 1.2).exploding()
    first, second = Midpoint(at, eta=1.0).step(a, b)
    assert first.after is b and second.level is b and second.after is b
    nearly = Midpoint(lambda r: preserving(0, r).exploding(), eta=1 - 1e-9).step(a, b)
    assert math.isclose(nearly[1].level.sigma, b.sigma, rel_tol=1e-7)
    assert math.isclose(nearly[1].sample, second.sample, rel_tol=1e-6)


def test_heun_on_exploding_levels_is_the_mean_of_two_slopes() -> None:
    a, b = preserving(9, 5.0).exploding(), preserving(4, 1.2).exploding()
    first, second = Heun().step(a, b)
    x, d1, d2 = 3.0, 0.4, -0.2
    euler = first.sample * x + first.outputs[0] * d1
    slope = (x - d1) / a.sigma
    assert math.isclose(euler, x + slope * (b.sigma - a.sigma), rel_tol=1e-12)
    made = second.saved * x + second.sample * euler + second.outputs[0] * d2 + second.outputs[1] * d1
    assert math.isclose(made, x + (slope + (euler - d2) / b.sigma) / 2 * (b.sigma - a.sigma), rel_tol=1e-12)


def test_angles() -> None:
    level = angular(math.sin(0.3 * math.pi / 2))
    assert math.isclose(level.t, 0.3) and math.isclose(level.alpha, math.cos(0.3 * math.pi / 2))
    plan = langevin.IPNDMScheduler().plan(timesteps=[1.0, 0.6, 0.2])
    assert [step.timestep for step in plan.steps] == pytest.approx([1.0, 0.6, 0.2]) and plan.grid[-1].sigma == 0


def test_a_run_from_within_a_step_draws_the_noise_that_the_rest_leaves_room_for() -> None:
    """From the middle by a first-order row; a fully ancestral step has its middle at its end."""
    grid = langevin.KDPM2DiscreteScheduler().plan(4).grid
    row = Midpoint(lambda ratio: Level(0.5, 1.0, ratio), eta=0.5).rows(grid, 1)[0]
    a, b = row.level, row.after
    up = 0.5 * math.sqrt(b.sigma**2 * (a.sigma**2 - b.sigma**2) / a.sigma**2)
    assert grid[0].sigma > a.sigma > b.sigma == grid[1].sigma and math.isclose(row.noise, up, rel_tol=1e-9)
    assert math.isclose(row.sample**2 * a.sigma**2 + up**2, b.sigma**2, rel_tol=1e-9)
    full = langevin.KDPM2AncestralDiscreteScheduler().plan(4).part(1).rows[0]
    assert full.level == full.after and full.noise is None and math.isclose(full.sample, 1.0)
