"""Agreement with the formulas that k-diffusion published, written out here in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import langevin
from tests.schedulers.oracle import STABLE, difference, network, planned, seeded

COUNTS = (1, 4, 11, 25, 50)
NOISE = torch.randn(2, 3, 4, 4, generator=seeded(7), dtype=torch.float64)


def table() -> torch.Tensor:
    """Return the noise levels of the training table, ascending."""
    bars = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).double()
    return ((1 - bars) / bars).sqrt()


def plain(n: int) -> torch.Tensor:
    """Levels at n even times, by linear interpolation of their logarithms, and 0."""
    logs, t = table().log(), torch.linspace(999, 0, n, dtype=torch.float64)
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    return torch.cat([((1 - w) * logs[low] + w * logs[high]).exp(), torch.zeros(1, dtype=torch.float64)])


def karras(n: int, high: float, low: float) -> torch.Tensor:
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.cat([(high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7, torch.zeros(1).double()])


def exponential(n: int, high: float, low: float) -> torch.Tensor:
    return torch.cat([torch.linspace(math.log(high), math.log(low), n).double().exp(), torch.zeros(1).double()])


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the data from a network that predicts noise, asked at the fractional time of the level."""
    t = np.interp(math.log(float(sigma)), table().log().numpy(), np.arange(1000))
    return x - sigma * network(x / (sigma**2 + 1).sqrt(), t)


def split(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (down, up) of an ancestral step."""
    up = (b**2 * (a**2 - b**2) / a**2).sqrt()
    return (b**2 - up**2).sqrt(), up


def slope(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return (x - denoiser(x, sigma)) / sigma


def dpmpp_2m(x: torch.Tensor, s: torch.Tensor, draw) -> torch.Tensor:
    old = None
    for i in range(len(s) - 1):
        new = d = denoiser(x, s[i])
        h = s[i].log() - s[i + 1].log()
        if old is not None and s[i + 1] > 0:
            r = (s[i - 1].log() - s[i].log()) / h
            d = (1 + 1 / (2 * r)) * new - old / (2 * r)
        x, old = s[i + 1] / s[i] * x - torch.expm1(-h) * d, new
    return x


def euler(x: torch.Tensor, s: torch.Tensor, draw) -> torch.Tensor:
    for a, b in pairwise(s):
        x = x + slope(x, a) * (b - a)
    return x


def euler_ancestral(x: torch.Tensor, s: torch.Tensor, draw) -> torch.Tensor:
    for a, b in pairwise(s):
        down, up = split(a, b)
        x = x + slope(x, a) * (down - a) + draw() * up
    return x


def heun(x: torch.Tensor, s: torch.Tensor, draw) -> torch.Tensor:
    for a, b in pairwise(s):
        first = slope(x, a)
        ahead = x + first * (b - a)
        x = ahead if b == 0 else x + (first + slope(ahead, b)) / 2 * (b - a)
    return x


def dpm_2(x: torch.Tensor, s: torch.Tensor, draw) -> torch.Tensor:
    for a, b in pairwise(s):
        middle = (a * b).sqrt()
        x = x + (slope(x, a) if b == 0 else slope(x + slope(x, a) * (middle - a), middle)) * (b - a)
    return x


def dpm_2_ancestral(x: torch.Tensor, s: torch.Tensor, draw) -> torch.Tensor:
    for a, b in pairwise(s):
        down, up = split(a, b)
        if b == 0:
            x = x + slope(x, a) * (b - a)
            continue
        middle = (a * down).sqrt()
        x = x + slope(x + slope(x, a) * (middle - a), middle) * (down - a) + draw() * up
    return x


def lms(x: torch.Tensor, s: torch.Tensor, draw) -> torch.Tensor:
    """Weights by Gauss-Legendre quadrature, which is exact for cubics."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    slopes: list[torch.Tensor] = []
    for i in range(len(s) - 1):
        slopes.append(slope(x, s[i]))
        known = [float(s[j]) for j in range(i, max(i - 4, -1), -1)]
        half = float(s[i + 1] - s[i]) / 2
        points = float(s[i]) + half * (nodes + 1)
        for j, node in enumerate(known):
            basis = np.prod([(points - o) / (node - o) for k, o in enumerate(known) if k != j] or [points**0], axis=0)
            x = x + slopes[i - j] * half * float((weights * basis).sum())
    return x


SAMPLERS = [
    ("EulerDiscreteScheduler", euler),
    ("EulerAncestralDiscreteScheduler", euler_ancestral),
    ("HeunDiscreteScheduler", heun),
    ("KDPM2DiscreteScheduler", dpm_2),
    ("KDPM2AncestralDiscreteScheduler", dpm_2_ancestral),
    ("LMSDiscreteScheduler", lms),
    ("DPMSolverMultistepScheduler", dpmpp_2m),
]


def agree(name: str, sampler, levels: torch.Tensor, n: int, **config) -> None:
    scheduler = getattr(langevin, name)(**STABLE, **config)
    plan = scheduler.plan(n)
    assert difference(torch.tensor([level.ratio for level in plan.grid]), levels) < 1e-6
    first, second = seeded(), seeded()
    made = planned(plan, x=plan.start(NOISE), generator=first)
    wanted = sampler(NOISE * levels[0], levels, lambda: torch.randn(NOISE.shape, generator=second, dtype=NOISE.dtype))
    assert difference(made, wanted) < 1e-5, (name, n, config)


@pytest.mark.parametrize(("name", "sampler"), SAMPLERS)
def test_plain_levels(name: str, sampler) -> None:
    """`timestep_spacing="k_diffusion"`, in every sampler that k-diffusion has: levels, start and result."""
    for n in COUNTS:
        agree(name, sampler, plain(n), n, timestep_spacing="k_diffusion")


@pytest.mark.parametrize(("name", "sampler"), SAMPLERS)
def test_karras_and_exponential_levels(name: str, sampler) -> None:
    """With Karras and exponential levels between the ends of the table, Euler-ancestral included."""
    high, low = float(table()[-1]), float(table()[0])
    for n in (4, 25):
        agree(name, sampler, karras(n, high, low), n, timestep_spacing="k_diffusion", use_karras_sigmas=True)
        agree(name, sampler, exponential(n, high, low), n, timestep_spacing="k_diffusion", use_exponential_sigmas=True)


def test_levels_of_every_trained_scheduler() -> None:
    for name in (
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    ):
        grid = getattr(langevin, name)(**STABLE, timestep_spacing="k_diffusion").plan(7).grid
        assert np.allclose([level.t for level in grid[:7]], np.linspace(999, 0, 7))
        assert np.allclose([level.ratio for level in grid[:7]], plain(7)[:7].numpy(), rtol=1e-6)


def test_ancestral_levels_are_off_by_default() -> None:
    scheduler = langevin.EulerAncestralDiscreteScheduler(**STABLE)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999.0, 749.25, 499.5, 249.75, 0.0]
    beta = langevin.EulerAncestralDiscreteScheduler(**STABLE, use_beta_sigmas=True)
    same = langevin.EulerDiscreteScheduler(**STABLE, use_beta_sigmas=True)
    assert beta.plan(9).grid == same.plan(9).grid


def test_assigned_timesteps_keep_their_levels() -> None:
    scheduler = langevin.EulerDiscreteScheduler(**STABLE, timestep_spacing="k_diffusion")
    scheduler.set_timesteps(10)
    before = scheduler.sigmas
    scheduler.timesteps = scheduler.timesteps[3:]
    assert torch.allclose(scheduler.sigmas, before[3:], rtol=1e-5)


@pytest.mark.parametrize("n", [1, 4, 25])
def test_an_inversion_makes_as_many_steps_as_asked(n: int) -> None:
    inverse = langevin.DPMSolverMultistepInverseScheduler(timestep_spacing="k_diffusion")
    plan = inverse.plan(n)
    assert len(plan.rows) == n and plan.rows[-1].after.t == 999
    assert all(row.after.ratio > row.level.ratio for row in plan.rows)


def test_a_single_step_on_karras_levels_starts_at_the_noisiest() -> None:
    scheduler = langevin.EulerDiscreteScheduler(timestep_spacing="k_diffusion", use_karras_sigmas=True)
    assert scheduler.plan(1).rows[0].level.t == 999
