"""Reading data and noise off every kind of output, at every kind of level."""

from __future__ import annotations

import math

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.diffusion import Level, Prediction
from langevin.diffusion.prediction import KINDS
from langevin.diffusion.process import flow, preserving

X0 = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EPS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LEVELS = (preserving(1, 0.3), preserving(1, 20.0), Level(1, 1.0, 7.0), flow(1, 0.25))


def output(kind: str, level: Level) -> torch.Tensor:
    return {
        "epsilon": EPS,
        "sample": X0,
        "v_prediction": (level.alpha * EPS - level.sigma * X0) / level.norm,
        "flow_prediction": EPS - X0,
        "score": -EPS / level.sigma,
        "scaled_score": -EPS,
    }[kind]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_data_and_noise_are_recovered(kind: str, level: Level) -> None:
    x = level.alpha * X0 + level.sigma * EPS
    prediction = Prediction(kind)
    assert torch.allclose(prediction.data(x, output(kind, level), level), X0, rtol=1e-10, atol=1e-10)
    assert torch.allclose(prediction.noise(x, output(kind, level), level), EPS, rtol=1e-10, atol=1e-10)


def test_pure_noise_and_pure_data() -> None:
    start = Level(999, 0.0, 1.0)
    velocity = Prediction("v_prediction")
    assert torch.equal(velocity.data(EPS, -X0, start), X0) and torch.equal(velocity.noise(EPS, -X0, start), EPS)
    velocity.check(start)
    for kind in ("epsilon", "score", "scaled_score"):
        with pytest.raises(ConfigError, match="timestep 999"):
            Prediction(kind).check(start)


def test_clipping_and_the_noise_that_belongs_to_it() -> None:
    level, prediction = LEVELS[0], Prediction("epsilon", clip=0.5)
    x = level.alpha * X0 + level.sigma * EPS
    data = prediction.data(x, EPS, level)
    assert float(data.abs().max()) == 0.5 and torch.allclose(prediction.noise(x, EPS, level), EPS)
    again = level.alpha * data + level.sigma * prediction.at(level).bounded_noise(x, EPS)
    assert torch.allclose(again, x)


def test_dynamic_thresholding() -> None:
    x0 = torch.linspace(-4, 4, 101).reshape(1, 101)
    bounded = Prediction("sample", threshold=(0.5, 10.0)).bound(x0)
    limit = float(x0.abs().quantile(0.5))
    assert torch.allclose(bounded, x0.clamp(-limit, limit) / limit) and float(bounded.abs().max()) == 1.0
    assert torch.equal(Prediction("sample", threshold=(0.5, 10.0)).bound(x0 / 10), x0 / 10)
    assert torch.allclose(Prediction("sample", threshold=(0.9, 1.5)).bound(x0), x0.clamp(-1.5, 1.5) / 1.5)
    assert Prediction("sample", clip=1.0, threshold=(0.9, 1.5)).bound(x0).shape == x0.shape


def test_learned_variance_is_split_off() -> None:
    both = torch.cat([X0, EPS], dim=1)
    mean, variance = Prediction(variance="learned_range").split(both, X0)
    assert torch.equal(mean, X0) and torch.equal(variance, EPS)
    assert Prediction(variance="learned").split(X0, X0)[1] is None
    assert Prediction().split(both, X0)[0] is both
    with pytest.raises(InputError, match="6 output channels"):
        Prediction(variance="learned").split(torch.cat([both, X0], dim=1), X0)


def test_unknown_kind() -> None:
    with pytest.raises(InputError, match="epsilon"):
        Prediction("eps")
    assert math.isclose(Prediction().clip or 0.0, 0.0)
