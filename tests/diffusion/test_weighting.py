"""Loss weights in closed form, at the ends too."""

from __future__ import annotations

import math

import pytest
import torch

import langevin
from langevin.core.errors import InputError
from langevin.diffusion import min_snr_weight, signal_to_noise

SNR = torch.tensor([0.0, 0.1, 1.0, 5.0, 80.0, math.inf])


def test_closed_forms() -> None:
    assert min_snr_weight(SNR).tolist() == pytest.approx([1, 1, 1, 1, 5 / 80, 0])
    assert min_snr_weight(SNR, "sample").tolist() == pytest.approx([0, 0.1, 1, 5, 5, 5])
    assert min_snr_weight(SNR, "v_prediction").tolist() == pytest.approx([0, 0.1 / 1.1, 0.5, 5 / 6, 5 / 81, 0])
    assert min_snr_weight(SNR, "flow_prediction")[2].item() == pytest.approx(0.25)
    assert min_snr_weight(SNR, gamma=1.0)[3].item() == pytest.approx(0.2)


def test_one_weight_whatever_the_target() -> None:
    """The weighted loss of one estimate of the data is the same in every parameterisation."""
    alpha, sigma = 0.6, 0.8
    snr = torch.tensor([(alpha / sigma) ** 2])
    error = 0.37  # of x_0
    errors = {
        "sample": error, "epsilon": error * alpha / sigma, "v_prediction": error / sigma,
        "flow_prediction": error * (alpha / sigma + 1),
    }  # fmt: skip
    losses = [float(min_snr_weight(snr, kind)) * e**2 for kind, e in errors.items()]
    assert losses == pytest.approx([losses[0]] * 4)


def test_unknown_target() -> None:
    with pytest.raises(InputError, match="v_prediction"):
        min_snr_weight(SNR, "velocity")


def test_signal_to_noise_of_a_scheduler() -> None:
    scheduler = langevin.DDPMScheduler(rescale_betas_zero_snr=True)
    t = torch.tensor([0, 500, 999])
    snr = signal_to_noise(scheduler.alphas_cumprod, t)
    bars = scheduler.alphas_cumprod[t]
    assert torch.allclose(snr, bars / (1 - bars)) and snr[-1] == 0


@pytest.mark.parity
def test_signal_to_noise_is_the_peers() -> None:
    from diffusers.training_utils import compute_snr

    scheduler = langevin.DDPMScheduler()
    t = torch.tensor([1, 500, 999])
    assert torch.allclose(signal_to_noise(scheduler.alphas_cumprod, t), compute_snr(scheduler, t), rtol=1e-4)
