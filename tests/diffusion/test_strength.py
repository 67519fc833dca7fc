"""Starting from a picture: neighbouring strengths start at neighbouring levels."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import langevin
from langevin.diffusion.process import Level, between, flow, preserving
from langevin.registry import SCHEDULERS

TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WHOLE = {
    "CMStochasticIterativeScheduler": "its network knows the levels of its table",
    "IPNDMScheduler": "Adams-Bashforth weights are those of even steps",
    "LCMScheduler": "its network knows the timesteps of its distillation",
    "PNDMScheduler": "Adams-Bashforth weights are those of even steps",
    "TCDScheduler": "its network knows the timesteps of its distillation",
}
"""Samplers that begin at whole steps only."""
OTHER = {"VQDiffusionScheduler", "SchedulerMixin", "KarrasDiffusionSchedulers", "KarrasVeScheduler"}
OTHER |= {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"}
"""Rows that are no sampler from noise to data on levels."""
NAMES = [row.name for row in SCHEDULERS if row.name not in OTHER]


def plan_of(name: str, steps: int):
    cls = getattr(langevin, name)
    known = inspect.signature(cls.__init__).parameters
    return cls(**{option: value for option, value in TABLE.items() if option in known}).plan(steps)


def test_whole_steps_are_the_last_calls_of_the_run() -> None:
    """Where a level is visited twice, the run begins with the step that leaves it, not with a correction."""
    for name, first in (("HeunDiscreteScheduler", 4), ("KDPM2DiscreteScheduler", 4), ("EulerDiscreteScheduler", 2)):
        plan = plan_of(name, 4)
        assert plan.tail(0.5).rows == plan.part(first).rows, name
    plms = langevin.PNDMScheduler(**TABLE, skip_prk_steps=True).plan(4)
    assert [len(plms.tail(part / 4).rows) for part in (1, 2, 3, 4)] == [1, 2, 3, 5]


def test_a_part_too_short_for_a_timestep_of_its_own_is_rounded() -> None:
    """500 steps of two timesteps each: a fifth of a step is none, four fifths are a whole one."""
    plan = plan_of("DDIMScheduler", 500)
    assert plan.tail(100.2 / 500).rows == plan.tail(100 / 500).rows
    assert plan.tail(100.8 / 500).rows == plan.tail(101 / 500).rows
    assert len(plan.tail(100.5 / 500).rows) in (100, 101)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_level_follows_strength(name) -> None:
    plan = plan_of(name, 10)
    strengths = np.linspace(0.1, 1.0, 181)
    firsts = [plan.tail(float(s)).steps[0].level for s in strengths]
    ratios = np.array([np.log(min(level.ratio, 1e6)) for level in firsts])
    assert (np.diff(ratios) >= -1e-9).all()
    distinct = len({level.t for level in firsts})
    assert distinct == 10 if name in WHOLE else distinct > 100


@pytest.mark.parametrize("name", NAMES)
def test_whole_steps_are_those_of_the_grid(name) -> None:
    plan = plan_of(name, 10)
    for k in range(1, 11):
        tail = plan.tail(k / 10)
        assert tail.grid is plan.grid and tail.steps[0].level == plan.grid[10 - k]


@pytest.mark.parametrize("strength", [1e-6, 0.01, 0.049])
@pytest.mark.parametrize("name", NAMES)
def test_any_strength_makes_a_step(name, strength) -> None:
    tail = plan_of(name, 10).tail(strength)
    assert 1 <= len(tail.steps) <= 2
    assert tail.steps[-1].after == tail.grid[-1]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_shorter_first_step_starts_at_the_level_that_the_network_is_told(name) -> None:
    tail = plan_of(name, 10).tail(0.437)
    process = langevin.DDIMScheduler(**TABLE).process
    level = tail.steps[0].level
    assert level.ratio == pytest.approx(process.ratio(level.t), rel=1e-6)
    assert len(tail.steps) == 5


def test_between_two_levels() -> None:
    middle = between(flow(800.0, 0.8), flow(600.0, 0.6), 0.5)
    assert (middle.t, middle.alpha, middle.sigma) == pytest.approx((700.0, 0.3, 0.7))
    geometric = between(Level(1.0, 1.0, 8.0), Level(0.0, 1.0, 2.0), 0.5)
    assert (geometric.alpha, geometric.sigma) == pytest.approx((1.0, 4.0))
    whole = between(preserving(10, 4.0), preserving(5, 1.0), 0.5)
    assert whole.t == 8 and whole.ratio == pytest.approx(4.0**0.6)
    top = Level(9.0, 1.0, 0.5)
    assert between(top, Level(0.0, 1.0, 0.0), 0.5) is top
