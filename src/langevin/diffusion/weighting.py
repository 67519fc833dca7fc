"""Weights of the training loss by signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core.errors import check_choice

# Squared change of the target per change of x_0, as a function of the signal-to-noise ratio (alpha / sigma)^2:
# an error of eps, v or eps - x_0 of this size is an error of 1 in x_0.
PER_DATA: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sample": torch.ones_like,
    "epsilon": lambda snr: snr,
    "v_prediction": lambda snr: snr + 1,
    "flow_prediction": lambda snr: (snr.sqrt() + 1) ** 2,
}


def signal_to_noise(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Return alpha_bar / (1 - alpha_bar) at the given integer timesteps, in float32, on the timesteps' device."""
    bar = alphas_cumprod.to(device=timesteps.device, dtype=torch.float32)[timesteps]
    return bar / (1 - bar)


def min_snr_weight(snr: torch.Tensor, prediction: str = "epsilon", *, gamma: float = 5.0) -> torch.Tensor:
    """Return the min-SNR loss weight: Hang et al. 2023 (2303.09556), section 3.4.

    Every target gets the weight min(snr, gamma) of the x_0 loss, divided by how much larger its own squared error is:
    min(snr, gamma) for x_0, min(1, gamma / snr) for eps, min(snr, gamma) / (snr + 1) for v.

    Args:
        snr: (alpha / sigma)^2 per sample; 0 and infinity are allowed.
        prediction: "epsilon", "sample", "v_prediction" or "flow_prediction".
        gamma: the bound.
    """
    check_choice("prediction_type", prediction, PER_DATA)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / PER_DATA[prediction](snr)
