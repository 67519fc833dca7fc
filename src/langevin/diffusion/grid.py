"""What a run is asked to visit, and the numbers that answer it: timesteps or noise levels, noisiest first.

*Spacings* choose timesteps of the training table (Lin et al. 2305.08891, table 2), and *sigma schedules* choose noise
levels between two ends. `levels.py` makes levels of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..core.errors import InputError, check_choice, check_count
from ..core.imports import require
from .process import Level, Time

Grid = tuple[Level, ...]
"""The levels of a run, noisiest first; the last entry is its end."""


@dataclass(frozen=True)
class Ask:
    """What a run is asked to visit: so many levels, or its own timesteps or noise levels; with none of them all levels.

    Attributes:
        count: number of steps.
        timesteps: own timesteps, descending.
        sigmas: own noise levels, descending, the end of the run included.
        options: what else shapes the levels.

    Raises:
        InputError: for more than one of the first three, or a number of steps that is no whole number above 0.
    """

    count: int | None = None
    timesteps: Sequence[Time] | None = None
    sigmas: Sequence[float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.count, self.timesteps, self.sigmas)) > 1:
            raise InputError("Pass only one of num_inference_steps, timesteps and sigmas.")
        if self.count is not None:
            check_steps(self.count)

    @property
    def open(self) -> bool:
        """Whether it names neither a number of steps nor levels."""
        return self.count is None and self.timesteps is None and self.sigmas is None


# ---- spacings of timesteps ------------------------------------------------------------------------------------------


def linspace(count: int, last: Time) -> np.ndarray:
    """Return `count` times from `last` down to 0, both included."""
    return np.linspace(0, last, count)[::-1]


def leading(count: int, steps: int, offset: int = 0) -> np.ndarray:
    """Return `count` multiples of steps // count, the last of them 0, raised by `offset` as far as the table allows.

    Raises:
        InputError: when `count` exceeds `steps`, the length of the table.
    """
    check_steps(count, steps)
    times = np.arange(count)[::-1] * (steps // count)
    return times + min(offset, steps - 1 - int(times[0]))


def leading_open(count: int, steps: int, offset: int = 0) -> np.ndarray:
    """Return the noisiest `count` times of `leading(count + 1)`: the last stays one stride above 0."""
    if count + 1 > steps:
        return leading(count, steps, offset)
    return leading(count + 1, steps, offset)[:-1]


def trailing(count: int, steps: int, last: int | None = None) -> np.ndarray:
    """Return `count` times that start at the end of the table, or at `last` - 1, and descend by steps / count.

    The stride shrinks to last / count when it would otherwise run past 0; strides below 1 are not rounded.
    """
    start = steps if last is None else last
    stride = steps / count
    if np.round(start - (count - 1) * stride) < 1:
        stride = start / count
    times = start - np.arange(count) * stride
    return (np.round(times) if stride >= 1 else times) - 1


def spaced(spacing: str, count: int, steps: int, *, offset: int = 0) -> np.ndarray:
    """Return `count` times of a table of `steps` by the named spacing: linspace, leading or trailing."""
    check_choice("timestep_spacing", spacing, ("linspace", "leading", "trailing"))
    if spacing == "linspace":
        return linspace(count, steps - 1)
    return leading(count, steps, offset) if spacing == "leading" else trailing(count, steps)


def spaced_open(spacing: str, count: int, steps: int, *, last: int, offset: int = 0) -> np.ndarray:
    """Return `count` times below `last` by the named spacing; linspace and leading stay one stride above 0."""
    if spacing == "linspace":
        return linspace(count + 1, last - 1)[:-1]
    return leading_open(count, last, offset) if spacing == "leading" else trailing(count, steps, last)


def distillation(count: int, steps: int, strength: float = 1.0) -> np.ndarray:
    """Return the ascending times of a distillation of `count` steps, of the least noisy part `strength` of the table.

    Times stand at the upper ends of equal parts of the table: Luo et al. 2023 (2310.04378), section 4.3.
    """
    check_steps(count, steps)
    return np.arange(1, int(count * strength) + 1) * (steps // count) - 1


def distilled(count: int, origin: np.ndarray) -> np.ndarray:
    """Return `count` of the ascending times `origin` of a distillation, evenly from the noisiest down.

    Raises:
        InputError: when there are fewer than `count`.
    """
    check_steps(count)
    if count > len(origin):
        raise InputError(f"num_inference_steps is {count}, but there are only {len(origin)} times to choose from.")
    return origin[::-1][np.floor(np.linspace(0, len(origin), count, endpoint=False)).astype(int)]


def check_steps(count: int, steps: int | None = None) -> None:
    """Raise InputError unless `count` is a whole number of steps, at least 1 and at most `steps`."""
    check_count("num_inference_steps", count)
    if steps is not None and count > steps:
        raise InputError(f"num_inference_steps is {count}, but there are only {steps} training steps to choose from.")


def check_descending(name: str, values: Sequence[float], *, low: float, high: float | None = None) -> list[float]:
    """Return `values` as a list; raise InputError unless they descend strictly and lie in [low, high]."""
    numbers = [float(v) for v in values]
    if not numbers:
        raise InputError(f"`{name}` is empty; give at least one.")
    for before, after in pairwise(numbers):
        if not after < before:
            raise InputError(f"`{name}` must descend strictly, but {before:g} is followed by {after:g}.")
    if numbers[-1] < low or (high is not None and numbers[0] > high):
        bounds = f"in [{low:g}, {high:g}]" if high is not None else f"at least {low:g}"
        raise InputError(f"`{name}` must be {bounds}; given: {numbers[0]:g} ... {numbers[-1]:g}.")
    return numbers


def check_levels(sigmas: Sequence[float], *, low: float = 0.0) -> list[float]:
    """Return own noise levels, the end of the run included; raise InputError unless two or more descend."""
    levels = check_descending("sigmas", sigmas, low=low)
    if len(levels) < 2:
        raise InputError("`sigmas` must hold at least two levels: where the run starts and where it ends.")
    return levels


def check_positions(name: str, values: Sequence[float], count: int) -> list[int]:
    """Return positions in a table of `count`; raise InputError unless they are whole and descend."""
    numbers = check_descending(name, values, low=0, high=count - 1)
    if any(not v.is_integer() for v in numbers):
        raise InputError(f"`{name}` are positions in the training table, whole numbers; given: {numbers}.")
    return [int(v) for v in numbers]


def downwards(name: str, values: Sequence[float] | None) -> list[float] | None:
    """Return ascending `values` in reverse; raise InputError unless they ascend."""
    if values is not None and [*values] != sorted(values):
        raise InputError(f"`{name}` must ascend, since the run goes from data to noise; given: {[*values]}.")
    return None if values is None else [*values][::-1]


def check_strength(strength: float) -> None:
    """Raise InputError unless `strength` is in (0, 1]."""
    if not 0.0 < strength <= 1.0:
        raise InputError(f"strength is {strength}; it must be above 0 and at most 1.")


def floor(times: np.ndarray) -> np.ndarray:
    """Round down; times that miss a whole one by rounding errors count as whole."""
    return np.floor(times + 1e-3)


def whole(times: np.ndarray, quantise: Callable[[np.ndarray], np.ndarray] = np.round) -> list[Time]:
    """Return `times` as whole training steps; those that would coincide keep their fraction, so none is asked twice."""
    steps = quantise(times)
    alone = np.ones(len(steps), dtype=bool)
    same = steps[1:] == steps[:-1]
    alone[1:] &= ~same
    alone[:-1] &= ~same
    return [int(s) if a else float(t) for s, a, t in zip(steps, alone, times, strict=True)]


# ---- schedules of noise levels --------------------------------------------------------------------------------------


def karras(count: int, high: float, low: float, *, rho: float = 7.0) -> np.ndarray:
    """Return noise levels evenly spaced in sigma^(1/rho): Karras et al. 2022 (2206.00364), eq. 5."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), count) ** rho


def exponential(count: int, high: float, low: float) -> np.ndarray:
    """Return noise levels evenly spaced in log sigma, which is uniform in lambda: Lu et al. 2022 (2206.00927)."""
    return np.geomspace(high, low, count)


def beta(count: int, high: float, low: float, *, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Return noise levels at the quantiles of a beta distribution: Lee et al. 2024 (2407.12173). Needs scipy."""
    stats = require("scipy.stats", why="A schedule of beta sigmas")
    return low + stats.beta.ppf(np.linspace(1, 0, count), a, b) * (high - low)


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Move flow noise levels towards the noisy end: Esser et al. 2024 (2403.03206), eq. 23."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def stretched(sigmas: np.ndarray, last: float) -> np.ndarray:
    """Stretch flow noise levels linearly from their distance to 1 so that the last of them is `last`.

    A single level of 1 stays where it is.
    """
    if sigmas[-1] == 1:
        return sigmas
    return 1 - (1 - sigmas) * (1 - last) / (1 - sigmas[-1])


ALIGNED = {
    "stable-diffusion-1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "stable-diffusion-xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "stable-video-diffusion": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Noise levels that were optimised for ten steps of three published networks (2404.14507)."""


def align_your_steps(model: str, count: int = 10, *, end: float | None = 0.0) -> list[float]:
    """Return the `count` + 1 noise levels of a run, `sigmas=` of every sampler: Sabour et al. 2024 (2404.14507).

    Args:
        model: the network that they were optimised for, a name in `ALIGNED`.
        count: steps; other numbers than the published ten are interpolated linearly in log sigma.
        end: the level where the run ends; None ends at the last published one.

    Raises:
        InputError: for another model or less than one step.
    """
    check_choice("model", model, ALIGNED)
    check_steps(count)
    known = np.log(ALIGNED[model])
    at = np.interp(np.linspace(0, 1, count + 1), np.linspace(0, 1, len(known)), known)
    levels = list(ALIGNED[model]) if count + 1 == len(known) else np.exp(at).tolist()
    return levels if end is None else [*levels[:-1], end]


def squared_sine(count: int) -> np.ndarray:
    """Return sin^2 of angles evenly spaced from a right one to 0: `count` levels between 1 and 0, both included."""
    return np.sin(np.linspace(1, 0, count) * math.pi / 2) ** 2


def sines(quarter_turns: Sequence[float]) -> list[float]:
    """Return the noise levels at angles in quarter turns, the times of `process.angular`."""
    return [math.sin(t * math.pi / 2) for t in quarter_turns]


def dynamic_shift(mu: float, kind: str = "exponential") -> float:
    """Return the shift that `mu`, which grows with the size of the picture, stands for: exp(mu), or mu ("linear")."""
    return math.exp(mu) if kind == "exponential" else mu


SCHEDULES: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "lu": exponential,
}


def reshaped(
    sigmas: np.ndarray, shift: float, *, terminal: float | None = None, schedule: str | None = None
) -> np.ndarray:
    """Return flow noise levels shifted, stretched to end at `terminal`, and respaced between their ends."""
    sigmas = shifted(sigmas, shift)
    if terminal:
        sigmas = stretched(sigmas, terminal)
    return SCHEDULES[schedule](len(sigmas), float(sigmas[0]), float(sigmas[-1])) if schedule else sigmas
