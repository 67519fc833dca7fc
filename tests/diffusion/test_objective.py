"""What networks are trained on: targets, weightings and losses against formulas worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from langevin.core.errors import ConfigError, InputError
from langevin.diffusion.betas import betas
from langevin.diffusion.objective import WEIGHTINGS, Noising, Objective
from langevin.diffusion.process import TableProcess


def trained(zero_terminal_snr: bool = False) -> Noising:
    steps = betas("scaled_linear", 1000, start=0.00085, end=0.012, zero_terminal_snr=zero_terminal_snr)
    return Noising.of(TableProcess(torch.cumprod(1 - steps.double(), 0).numpy()))


NOISING = trained()
SNR = (NOISING.alpha / NOISING.sigma) ** 2
BY_HAND = {
    ("epsilon", "min_snr"): SNR.clamp(max=5) / SNR,
    ("v_prediction", "min_snr"): SNR.clamp(max=5) / (SNR + 1),
    ("sample", "min_snr"): SNR.clamp(max=5),
    ("epsilon", "debiased"): SNR.rsqrt(),
    ("v_prediction", "debiased"): SNR.sqrt() / (SNR + 1),
}
"""Weights of the papers: 2303.09556, eq. 9 and its forms for noise and v; 2310.08442, eq. 10."""


@pytest.mark.parametrize(("kind", "weighting"), BY_HAND)
def test_one_formula_gives_the_weights_of_every_kind(kind: str, weighting: str) -> None:
    found = Objective(kind, weighting=weighting).weights(NOISING)
    torch.testing.assert_close(found, BY_HAND[kind, weighting].float(), rtol=1e-6, atol=0)


def test_without_a_weighting_all_levels_count_alike() -> None:
    assert Objective().weights(NOISING).eq(1).all()


def test_a_level_without_data_counts_nothing_for_v_and_is_refused_for_noise() -> None:
    noising = trained(zero_terminal_snr=True)
    assert Objective("v_prediction", weighting="min_snr").weights(noising)[-1] == 0
    with pytest.raises(ConfigError, match="v_prediction"):
        Objective("epsilon").weights(noising)


def batch(shape: tuple[int, ...] = (6, 4, 3, 3)) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    index = torch.tensor([0, 10, 200, 500, 800, 999])
    return torch.randn(shape, generator=stream), torch.randn(shape, generator=stream), index


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_samples_and_targets_are_those_of_the_peers_scheduler(kind: str) -> None:
    import diffusers

    x0, eps, index = batch()
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    levels, objective = NOISING.at(index), Objective(kind)
    torch.testing.assert_close(objective.noised(x0, eps, levels), theirs.add_noise(x0, eps, index), rtol=0, atol=1e-5)
    wanted = {"epsilon": eps, "sample": x0, "v_prediction": theirs.get_velocity(x0, eps, index)}[kind]
    torch.testing.assert_close(objective.target(x0, eps, levels), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_a_perfect_output_costs_nothing_and_gives_back_the_data(kind: str) -> None:
    from langevin.diffusion.prediction import Prediction

    noising = Noising.straight(1000) if kind == "flow_prediction" else NOISING
    x0, eps, index = batch()
    index = index.clamp(min=10)
    levels, objective = noising.at(index), Objective(kind)
    x, said = objective.noised(x0, eps, levels), objective.target(x0, eps, levels)
    assert objective.cost(said, said).eq(0).all()
    for k, number in enumerate(index.tolist()):
        read = Prediction(kind).data(x[k : k + 1].double(), said[k : k + 1].double(), noising.levels[number])
        torch.testing.assert_close(read.float(), x0[k : k + 1], rtol=0, atol=2e-3)


def test_straight_levels_rise_to_pure_noise_and_a_shift_makes_them_noisier() -> None:
    plain, shifted = Noising.straight(100), Noising.straight(100, shift=3.0)
    assert float(plain.sigma[-1]) == float(shifted.sigma[-1]) == 1.0
    torch.testing.assert_close(shifted.sigma, 3 * plain.sigma / (1 + 2 * plain.sigma))
    torch.testing.assert_close(plain.times.double(), 1000 * plain.sigma)


def test_the_losses_by_hand() -> None:
    error = torch.tensor([[0.0, 0.5, -2.0, 3.0]])
    zero, c = torch.zeros_like(error), 0.3
    bent = torch.sqrt(error**2 + c**2) - c
    assert torch.allclose(Objective().cost(error, zero), (error**2).mean(1))
    assert torch.allclose(Objective(loss="huber", bend=c).cost(error, zero), (2 * c * bent).mean(1))
    assert torch.allclose(Objective(loss="smooth_l1", bend=c).cost(error, zero), (2 * bent).mean(1))


def test_offset_and_perturbation_by_hand() -> None:
    x0, eps, index = batch()
    more, channels = torch.randn(x0.shape), torch.randn(x0.shape[:2])
    levels, objective = NOISING.at(index), Objective(offset=0.1, perturbation=0.2)
    noise = objective.noise(eps, channels)
    assert torch.equal(noise, eps + 0.1 * channels[:, :, None, None])
    alpha, sigma = (column.view(-1, 1, 1, 1) for column in (levels.alpha, levels.sigma))
    assert torch.allclose(objective.noised(x0, noise, levels, more), alpha * x0 + sigma * (noise + 0.2 * more))
    assert torch.equal(objective.target(x0, noise, levels), noise)
    with pytest.raises(ConfigError, match="per picture and channel"):
        objective.noise(eps)
    with pytest.raises(ConfigError, match="one more draw"):
        objective.noised(x0, eps, levels)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "epsilonn"},
        {"loss": "l3"},
        {"weighting": "min_sn"},
        {"gamma": 0.0},
        {"bend": -1.0},
        {"offset": -0.1},
        {"perturbation": -0.1},
    ],
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        Objective(**options)
    assert set(WEIGHTINGS) == {"min_snr", "debiased"}
