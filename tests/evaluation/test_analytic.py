"""The exact solutions are exact: checked against automatic differentiation, quadrature, quantiles and each other."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch

from langevin.core.errors import InputError
from langevin.diffusion.prediction import KINDS, Preconditioning, Prediction
from langevin.diffusion.process import Level, flow, preserving
from langevin.evaluation.analytic import CLEAN, Gaussian, Mixture, runge_kutta

LEVELS = [preserving(5, 3.0), preserving(5, 0.1), flow(3, 0.7), Level(2, 1.0, 12.0), preserving(9, math.inf)]
LINE = Mixture(means=((0.6,), (-0.3,)), deviations=(0.1, 0.2), weights=(0.4, 0.6))
DATA = [Gaussian(), Gaussian(0.4, 0.0), LINE, Mixture()]


def points(data, count: int = 5) -> torch.Tensor:
    shape = (count, getattr(data, "dimension", 3), 1, 1)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def log_density(data: Mixture, x: torch.Tensor, level: Level) -> torch.Tensor:
    total = 0.0
    for mean, deviation, weight in zip(data.means, data.deviations, data.weights, strict=True):
        variance = (level.alpha * deviation) ** 2 + level.sigma**2
        square = (x.flatten(1) - level.alpha * torch.tensor(mean)).square().sum(1)
        total = total + weight * torch.exp(-square / (2 * variance)) / variance ** (data.dimension / 2)
    return total.log()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("data", DATA)
def test_the_estimates_belong_together(data, level: Level) -> None:
    """alpha E[x_0 | x] + sigma E[eps | x] = x."""
    x = points(data)
    assert torch.allclose(level.alpha * data.estimate(x, level) + level.sigma * data.noise(x, level), x, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_the_score_is_the_gradient_of_the_density(level: Level) -> None:
    one = Mixture(means=((0.1, 0.1, 0.1),), deviations=(0.2,), weights=(1.0,))
    for data, density in ((Mixture(), Mixture()), (LINE, LINE), (Gaussian(0.1, 0.2), one)):
        x = points(data).requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(density, x, level).sum(), x)
        assert torch.allclose(data.score(x.detach(), level), gradient, atol=1e-6)


def test_the_estimate_is_the_posterior_mean() -> None:
    level, x = preserving(1, 0.8), torch.tensor([[0.3]], dtype=torch.float64)
    grid = torch.linspace(-3, 3, 20001, dtype=torch.float64)[:, None]
    weight = torch.exp(log_density(LINE, grid, CLEAN) - (x - level.alpha * grid[:, 0]) ** 2 / (2 * level.sigma**2))[0]
    assert LINE.estimate(x, level).item() == pytest.approx(float((weight * grid[:, 0]).sum() / weight.sum()), abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_kind_of_output_is_read_back(kind: str, level: Level) -> None:
    if kind in ("epsilon", "score", "scaled_score") and level.alpha == 0:
        return  # noise says nothing about the data there
    for data, prediction in itertools.product(DATA, (Prediction(kind), Prediction(kind, scaling=Preconditioning()))):
        if prediction.scaling and level.alpha != 1.0:
            continue
        x = points(data)
        output = data.output(x, level, prediction)
        assert torch.allclose(prediction.data(x, output, level), data.estimate(x, level), atol=1e-10)
        assert torch.allclose(prediction.noise(x, output, level), data.noise(x, level), atol=1e-10)


def test_output_keeps_the_dtype() -> None:
    x = points(Mixture()).float()
    assert Mixture().output(x, LEVELS[0], Prediction()).dtype == torch.float32


def test_an_output_that_says_nothing_is_an_error() -> None:
    class Mute(Prediction):
        def pairs(self, level):
            return (1.0, 0.0), (float("nan"), 1.0)

    with pytest.raises(InputError, match="says nothing"):
        Gaussian().output(points(Gaussian()), LEVELS[0], Mute())


def test_the_integrator_is_of_sixth_order() -> None:
    def error(count: int) -> float:
        u = torch.ones(1, dtype=torch.float64)
        end = runge_kutta(lambda u, r: u * math.cos(math.log(r)), u, 0.0, 2.0, count)
        return abs(float(end) - math.exp(math.sin(2)))

    assert 5.6 < math.log2(error(8) / error(16)) < 6.6


@pytest.mark.parametrize("pair", [(3, 1), (1, 2), (4, 1)])
def test_the_flow_of_a_mixture_of_one_is_the_gaussian_one(pair) -> None:
    a, b = (LEVELS[k] for k in pair)
    one = Mixture(means=((0.1, 0.1),), deviations=(0.2,), weights=(1.0,))
    x = points(one)
    for end in (b, CLEAN):
        assert torch.allclose(one.transport(x, a, end), Gaussian(0.1, 0.2).transport(x, a, end), atol=2e-8)
    assert torch.allclose(one.transport(one.transport(x, b, a), a, b), x, atol=1e-7)


def test_the_flow_keeps_quantiles_in_one_dimension() -> None:
    def quantile(x: torch.Tensor, level: Level) -> torch.Tensor:
        total = 0.0
        for (mean,), deviation, weight in zip(LINE.means, LINE.deviations, LINE.weights, strict=True):
            z = (x - level.alpha * mean) / math.hypot(level.alpha * deviation, level.sigma)
            total = total + weight * torch.special.ndtr(z)
        return total

    a, x = preserving(9, 60.0), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for b in (preserving(1, 0.5), CLEAN):
        assert torch.allclose(quantile(LINE.transport(x, a, b), b), quantile(x, a), atol=1e-7)


def test_the_flow_agrees_with_another_integrator() -> None:
    integrate = importlib.import_module("scipy.integrate")
    data, x = Mixture(), points(Mixture())

    def slope(log_ratio, u):
        ratio = math.exp(log_ratio)
        return (ratio * data.noise(torch.from_numpy(u).reshape(x.shape), Level(0, 1.0, ratio))).flatten().numpy()

    span = (math.log(14.0), math.log(0.01))
    solved = integrate.solve_ivp(slope, span, (x * 14).flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-11)
    ours = data.transport(x * 14, Level(1, 1.0, 14.0), Level(0, 1.0, 0.01))
    assert torch.allclose(ours.flatten(), torch.from_numpy(solved.y[:, -1]), atol=1e-7)


def test_draws_have_the_moments_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = Mixture().draw((20000, 2), generator)
    mean = torch.einsum("k,kd->d", Mixture().shares, Mixture().centres)
    assert torch.allclose(drawn.mean(0), mean, atol=0.015)
    shares = torch.bincount(Mixture().component(drawn)) / len(drawn)
    assert torch.allclose(shares.double(), Mixture().shares, atol=0.015)
    noised = Gaussian().noised((1, 20000), LEVELS[0], generator)
    assert float(noised.var()) == pytest.approx(Gaussian().variance(LEVELS[0]), rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": (0.5, 0.5)}, {"weights": (0.5, 0.3, 0.3)}, {"deviations": (0.1, 0.0, 0.1)},
        {"means": ((0.0,), (1.0, 2.0), (3.0,))},
    ],
)  # fmt: skip
def test_a_wrong_mixture_is_an_error(wrong) -> None:
    with pytest.raises(InputError, match="mixture needs"):
        Mixture(**wrong)
