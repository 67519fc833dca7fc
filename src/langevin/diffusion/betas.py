"""Betas of trained processes: how much noise every training step adds, float32 as the published networks saw it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from ..core.errors import InputError, check_choice, check_count, check_number


def _linear(count: int, start: float, end: float) -> torch.Tensor:
    """Ho et al. 2020 (2006.11239), section 4."""
    return torch.linspace(start, end, count, dtype=torch.float32, device="cpu")


def _scaled_linear(count: int, start: float, end: float) -> torch.Tensor:
    """Linear in sqrt(beta): Rombach et al. 2022 (2112.10752)."""
    return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32, device="cpu") ** 2


def _sigmoid(count: int, start: float, end: float) -> torch.Tensor:
    """A logistic curve over [-6, 6] between the two ends: Xu et al. 2022 (2203.02923)."""
    return torch.sigmoid(torch.linspace(-6, 6, count, device="cpu")) * (end - start) + start


def from_alpha_bar(alpha_bar: Callable[[float], float], count: int, *, largest: float = 0.999) -> torch.Tensor:
    """Return the betas whose cumulative product follows `alpha_bar` on [0, 1]: Nichol & Dhariwal 2102.09672, eq. 17."""
    bars = [alpha_bar(k / count) for k in range(count + 1)]
    betas = [min(1.0 - after / before, largest) for before, after in pairwise(bars)]
    return torch.tensor(betas, dtype=torch.float32, device="cpu")


def _cosine_bar(t: float, offset: float = 0.008) -> float:
    """Nichol & Dhariwal 2021 (2102.09672), eq. 17, free of scale; `offset` keeps the first beta from vanishing."""
    angle = (t + offset) / (1 + offset) * math.pi / 2
    return math.cos(angle) ** 2


def _laplace_bar(t: float) -> float:
    """The log signal-to-noise ratio follows a Laplace distribution: Hang et al. 2024 (2407.03297)."""
    middle = t - 0.5
    lam = math.copysign(0.5, middle) * math.log1p(1e-6 - 2 * abs(middle))
    return 1.0 / math.sqrt(1.0 + math.exp(-lam))


BETAS: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda count, start, end: from_alpha_bar(_cosine_bar, count),
    "sigmoid": _sigmoid,
    "laplace": lambda count, start, end: from_alpha_bar(_laplace_bar, count),
}
BETWEEN_ENDS = ("linear", "scaled_linear", "sigmoid")
"""Schedules that run from `start` to `end`; the others read neither."""


def betas(
    schedule: str = "linear",
    count: int = 1000,
    *,
    start: float = 0.0001,
    end: float = 0.02,
    trained: Sequence[float] | np.ndarray | None = None,
    zero_terminal_snr: bool = False,
) -> torch.Tensor:
    """Return the float32 betas of a discrete process, shape (count,).

    Args:
        schedule: a name in `BETAS`.
        trained: the betas themselves; then `schedule`, `count`, `start` and `end` are not used.
        zero_terminal_snr: rescale so that the last step holds no data at all.

    Raises:
        InputError: for what `check_options` refuses, or trained betas outside (0, 1].
    """
    if trained is not None:
        values = torch.as_tensor(np.asarray(trained), dtype=torch.float32, device="cpu")
        if values.ndim != 1 or not bool(((values > 0) & (values <= 1)).all()):
            raise InputError("`trained_betas` must be a flat list of numbers in (0, 1].")
    else:
        check_options(schedule, count, start, end)
        values = BETAS[schedule](count, start, end)
    return rescale_zero_terminal_snr(values) if zero_terminal_snr else values


def check_options(schedule: str, count: int, start: float, end: float) -> None:
    """Raise InputError for an unknown schedule, less than one step, or ends outside [0, 1] that the schedule reads."""
    check_choice("beta_schedule", schedule, BETAS)
    check_count("num_train_timesteps", count)
    if schedule in BETWEEN_ENDS:
        check_number("beta_start", start, low=0.0, high=1.0)
        check_number("beta_end", end, low=0.0, high=1.0)


def rescale_zero_terminal_snr(values: torch.Tensor) -> torch.Tensor:
    """Shift and stretch sqrt(alpha_bar) to end at 0 and keep its start: Lin et al. 2305.08891, algorithm 1."""
    root = torch.cumprod(1.0 - values, dim=0).sqrt()
    stretch = root[0] / (root[0] - root[-1])
    bar = ((root - root[-1]) * stretch) ** 2
    return 1.0 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
