"""Levels, betas, grids: what holds for every process and every step count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from langevin.core.errors import InputError
from langevin.diffusion import grid as grids
from langevin.diffusion.betas import BETAS, betas, rescale_zero_terminal_snr
from langevin.diffusion.levels import at_flow
from langevin.diffusion.process import Level, TableProcess, flow, preserving


def table(schedule: str = "scaled_linear") -> TableProcess:
    values = betas(schedule, start=0.00085, end=0.012)
    return TableProcess(torch.cumprod(1 - values, 0).double().numpy())


def test_levels() -> None:
    level = Level(3, 0.6, 0.8)
    assert math.isclose(level.lam, math.log(0.75)) and math.isclose(level.norm, 1.0)
    assert math.isclose(level.exploding().sigma, 0.8 / 0.6) and level.exploding().alpha == 1.0
    assert preserving(5, math.inf) == Level(5, 0.0, 1.0) and Level(5, 0.0, 1.0).lam == -math.inf
    assert Level(0, 1.0, 0.0).lam == math.inf and Level(0, 0.0, 1.0).ratio == math.inf
    assert flow(250, 0.25) == Level(250, 0.75, 0.25)


@pytest.mark.parametrize("schedule", BETAS)
def test_betas(schedule: str) -> None:
    values = betas(schedule)
    assert values.dtype == torch.float32 and values.shape == (1000,)
    assert bool(((values > 0) & (values < 1)).all())
    zero = rescale_zero_terminal_snr(values)
    bars = torch.cumprod(1 - zero, 0)
    assert float(bars[-1]) == 0.0 and math.isclose(float(bars[0]), float(1 - values[0]), rel_tol=1e-6)


def test_betas_refuse_nonsense() -> None:
    with pytest.raises(InputError, match="sigmoid"):
        betas("sigmoidal")
    for wrong in ({"start": "x"}, {"start": -0.1}, {"end": 1.5}, {"end": None}, {"count": 0}, {"count": 10.0}):
        with pytest.raises(InputError, match=r"`(beta_start|beta_end|num_train_timesteps)` is .*; it must be"):
            betas(**wrong)
    assert torch.equal(betas("squaredcos_cap_v2", start=None), betas("squaredcos_cap_v2"))
    with pytest.raises(InputError, match="flat list"):
        betas(trained=[0.1, 1.5])


def test_times_and_ratios_are_inverse() -> None:
    process = table()
    for t in (0, 1, 17, 500, 998, 999):
        assert process.level(t).alpha == pytest.approx(math.sqrt(process.alphas_cumprod[t]), rel=1e-12)
        assert process.time(process.ratio(t)) == pytest.approx(t, abs=1e-9)
    assert process.ratios[300] < process.ratio(300.5) < process.ratios[301]
    assert process.time(1e9) == 999 and process.time(0.0) == 0


@pytest.mark.parametrize("steps", [*range(1, 40), 61, 103, 121, 333, 500, 501, 600, 998, 999, 1000])
def test_every_count_gives_that_many_distinct_times(steps: int) -> None:
    for offset in (0, 1):
        for spacing in (grids.linspace(steps, 999), grids.leading(steps, 1000, offset), grids.trailing(steps, 1000)):
            times = grids.whole(spacing)
            assert len(set(times)) == steps and min(times) >= 0 and max(times) <= 999
            assert all(a > b for a, b in itertools.pairwise(times))
    opened = grids.whole(grids.leading_open(steps, 1000, 1))
    assert len(set(opened)) == steps and max(opened) <= 999
    clipped = grids.whole(grids.trailing(steps, 1000, 990), lambda v: np.round(v + 1) - 1)
    assert len(set(clipped)) == steps and max(clipped) == 989 and min(clipped) >= 0


@pytest.mark.parametrize("steps", [2, 10, 50, 100, 400, 1000])
@pytest.mark.parametrize("schedule", grids.SCHEDULES)
def test_schedules_span_the_range_without_repetition(schedule: str, steps: int) -> None:
    process = table()
    levels = grids.SCHEDULES[schedule](steps, 14.6, 0.03)
    assert levels[0] == pytest.approx(14.6) and levels[-1] == pytest.approx(0.03)
    assert bool((np.diff(levels) < 0).all())
    times = grids.whole(np.array([process.time(v) for v in levels]))
    assert len(set(times)) == steps


def test_rounding_keeps_the_fraction_only_where_it_must() -> None:
    assert grids.whole(np.array([9.6, 2.6, 1.4, 0.8, 0.0])) == [10, 3, 1.4, 0.8, 0]
    assert [type(t) for t in grids.whole(np.array([9.6, 1.4, 0.8]))] == [int, float, float]


def test_karras_levels_of_the_paper() -> None:
    """Eq. 5 with rho = 7: the ends, and the middle of three."""
    levels = grids.karras(3, 80.0, 0.002)
    middle = ((80.0 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert np.allclose(levels, [80.0, middle, 0.002])


def test_own_levels_are_checked() -> None:
    assert grids.check_descending("x", [2, 1.0], low=1, high=2) == [2.0, 1.0]
    for values, cause in (([], "`x` is empty"), ([1.0, 1.0], "1 is followed by 1"), ([3, 1], r"in \[1, 2\]; given: 3")):
        with pytest.raises(InputError, match=cause):
            grids.check_descending("x", values, low=1, high=2)
    with pytest.raises(InputError, match=r"at least 1; given: 3 \.\.\. 0.5"):
        grids.check_descending("x", [3, 0.5], low=1)
    with pytest.raises(InputError, match="at least two levels"):
        grids.check_levels([1.0])


def test_levels_on_straight_paths() -> None:
    even, end = np.linspace(0.999, 0, 5)[:-1], flow(0, 0.0)
    plain, moved = at_flow(even, 1000, end), at_flow(grids.shifted(even, 3.0), 1000, end)
    assert [round(v.sigma, 6) for v in plain] == [0.999, 0.74925, 0.4995, 0.24975, 0.0]
    assert all(math.isclose(v.alpha + v.sigma, 1.0) for v in moved)
    assert math.isclose(moved[1].sigma, 3 * 0.74925 / (1 + 2 * 0.74925)) and moved[1].t == 899
