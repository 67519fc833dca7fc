"""Exponential integration: the step that all solvers in lambda = log(alpha / sigma) share.

In lambda the diffusion ODE and its SDEs are linear plus an integral of the prediction under an exponential weight
(Lu et al. 2022, 2206.00927, eq. 3.4 and 2211.01095, eq. 8; with noise Xue et al. 2023, 2309.05019, eq. 14 and 15). A
solver replaces the prediction by the polynomial through the ones it knows and integrates that: with s the part of the
step that lies behind, the polynomial needs the moments

    J_k(z) = integral from 0 to 1 of z * exp(-z * (1 - s)) * s^k ds,    J_0 = 1 - e^-z,    J_k = 1 - k * J_{k-1} / z,

where z = (1 + tau^2) * h for data predictions and -h for noise predictions, h being the step's length in lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from ..process import Level

Rule = Callable[[list[float], float], list[float]]
"""Returns the moments that a solver uses, given the exact ones and z."""


def moments(count: int, z: float) -> list[float]:
    """Return J_0(z) ... J_{count - 1}(z).

    For small z the recursion cancels on its way up and not on its way down, which begins with the last one's series.
    """
    if math.isinf(z):
        return [1.0 if z > 0 else -math.inf] * count
    if abs(z) >= 1.0:
        values = [-math.expm1(-z)]
        for k in range(1, count):
            values.append(1.0 - k * values[-1] / z)
        return values
    term, last = z / count, 0.0
    for n in range(count + 1, count + 21):
        last, term = last + term, -term * z / n
    values = [last]
    for k in range(count - 1, 0, -1):
        values.append(z * (1.0 - values[-1]) / k)
    return values[::-1]


def weights(places: Sequence[float], values: Sequence[float]) -> tuple[float, ...]:
    """Return the weights w of predictions at `places` that give the monomials the moments: sum_j w_j p_j^k = values[k].

    Divided differences solve this (Bjorck & Pereyra 1970, the dual system).
    """
    found, count = list(values), len(places)
    for k in range(count - 1):
        for j in range(count - 1, k, -1):
            found[j] -= places[k] * found[j - 1]
    for k in range(count - 2, -1, -1):
        for j in range(k + 1, count):
            found[j] /= places[j] - places[j - k - 1]
        for j in range(k, count - 1):
            found[j] -= found[j + 1]
    return tuple(found)


def exact(values: list[float], z: float) -> list[float]:
    """The rule that integrates the polynomial exactly."""
    return values


def midpoint(values: list[float], z: float) -> list[float]:
    """Replace J_1 of two predictions by J_0 / 2, as accurate in order: DPM-Solver-2 (2206.00927), UniPC's B_2."""
    return [values[0], values[0] / 2] if len(values) == 2 else values


def trapezoid(values: list[float], z: float) -> list[float]:
    """Replace J_1 of two predictions by z / 2, as accurate in order: UniPC's B_1 (2302.04867), SA-Solver's code."""
    return [values[0], z / 2] if len(values) == 2 else values


def exponential(
    a: Level,
    b: Level,
    points: Sequence[Level],
    *,
    wants: Literal["x0", "eps"],
    tau: float = 0.0,
    rule: Rule = exact,
) -> tuple[float, tuple[float, ...], float]:
    """Return the coefficients of x, of the predictions at `points` and of noise of the step a -> b.

    `tau` is the strength of the SDE: 0 is the ODE, 1 the reversed noising process. Points at pure noise have no finite
    lambda and no weight; steps without length are of order 1; and a noise prediction goes to clean data with the weight
    of the first point alone, without noise.
    """
    h = b.lam - a.lam
    known = [p.lam - a.lam for p in points if 1e-9 < abs(h) < math.inf and math.isfinite(p.lam)]
    places = [distance / h for distance in known] or [0.0]
    rest = (0.0,) * (len(points) - len(places))
    power = 1.0 + tau * tau
    if wants == "x0":
        z, scale = power * h, b.alpha
        sample = b.sigma / a.sigma * (math.exp(-tau * tau * h) if tau else 1.0)
        noise = b.sigma * math.sqrt(max(-math.expm1(-2 * tau * tau * h), 0.0)) if tau else 0.0
    elif b.sigma == 0:
        k = b.alpha / a.alpha
        return k, (-a.sigma * k, *(0.0 for _ in points[1:])), 0.0
    else:
        z, scale = -h, power * b.sigma
        sample = b.alpha / a.alpha
        noise = tau * b.sigma * math.sqrt(max(math.expm1(2 * h), 0.0)) if tau else 0.0
    found = weights(places, rule(moments(len(places), z), z))
    return sample, (*(scale * w for w in found), *rest), noise
