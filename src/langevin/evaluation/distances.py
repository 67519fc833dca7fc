"""How far two sets of pictures are apart, from their features: FID, KID, precision and recall."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.rng import seeded
from .intervals import RESAMPLES, Difference, Measure, counts, interval, measured
from .states import Features, Moments, same_width

BLOCK = 1024
"""Rows of a kernel or of distances that are held at a time."""
FRECHET_RESAMPLES, FRECHET_ROWS = 200, 2000
"""Resamples of a FID at most, and pictures in one: each takes two triangular and a singular value decomposition."""
NEIGHBOURS = 3
DAMPED = 0.25
"""How far the weights of a resample go from those of the sets themselves, 0 to 1."""


# ---- FID -------------------------------------------------------------------------------------------------------------


def frechet(one: Moments, other: Moments) -> float:
    """Return the Fréchet distance of the Gaussians with two sets' moments (Heusel et al. 2017, arXiv 1706.08500).

    |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2)); the last trace is the sum of the singular values of S1^(1/2) S2^(1/2),
    which needs no root of an unsymmetric matrix and no regulariser when there are fewer pictures than features.

    Raises:
        InputError: for less than two pictures, or features of different extractors.
    """
    same_width(len(one.mean), len(other.mean))
    return _frechet(one.mean, root(one.covariance), other.mean, root(other.covariance))


def root(covariance: Tensor) -> Tensor:
    """Return F with F^T F = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values.abs().amax() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, values, 0).sqrt()[:, None] * vectors.T


def _frechet(mean: Tensor, factor: Tensor, other_mean: Tensor, other_factor: Tensor) -> float:
    gap, spread = (mean - other_mean).square().sum(), factor.square().sum() + other_factor.square().sum()
    return (gap + spread - 2 * torch.linalg.svdvals(factor @ other_factor.T).sum()).item()


def _fitted(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and factor of the covariance of weighted rows; the factor has at most as many rows as features."""
    mean = weights @ rows / weights.sum()
    factor = (rows - mean) * (weights / (weights.sum() - 1)).sqrt()[:, None]
    return mean, torch.linalg.qr(factor, mode="r").R if len(rows) > rows.shape[1] else factor


def _frechets(one: Features, weights: Tensor, other: Features, others: Tensor) -> Tensor:
    """Return the distance for each pair of rows of weights."""
    rows, more = one.rows.double(), other.rows.double()
    pairs = zip(weights, others, strict=True)
    return torch.tensor([_frechet(*_fitted(rows, w), *_fitted(more, v)) for w, v in pairs], dtype=torch.float64)


# ---- KID -------------------------------------------------------------------------------------------------------------


def kernel(one: Tensor, other: Tensor) -> Tensor:
    """Return (x.y / d + 1)³ for all pairs of rows (Binkowski et al. 2018, arXiv 1801.01401, section 4)."""
    return (one @ other.T / one.shape[1] + 1) ** 3


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of two sets of rows.

    Raises:
        InputError: for less than two rows, or features of different extractors.
    """
    ones = (torch.ones(1, len(side), dtype=torch.float64) for side in (one, other))
    return _kernels(one.double(), next(ones), other.double(), next(ones)).item()


def kernel_subsets(one: Tensor, other: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Tensor:
    """Return the estimate on random subsets, float64 (subsets,); the paper's figure is their mean.

    Over all subsets there are, the mean is what `kernel_distance` says at once.

    Raises:
        InputError: for subsets that are larger than a set.
    """
    if size > min(len(one), len(other)):
        raise InputError(f"Subsets of {size} cannot be drawn from {len(one)} and {len(other)} pictures; take less.")
    generator = seeded(seed)

    def chosen(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size]]

    found = [kernel_distance(chosen(one), chosen(other)) for _ in range(subsets)]
    return torch.tensor(found, dtype=torch.float64)


def _kernels(one: Tensor, weights: Tensor, other: Tensor, others: Tensor) -> Tensor:
    """Return the estimate for each pair of rows of weights.

    A row that was drawn twice makes no pair with itself: such pairs are what biases a resampled distance.
    """
    same_width(one.shape[1], other.shape[1])
    if min(len(one), len(other)) < 2:
        raise InputError(f"KID needs at least two pictures on each side; there are {len(one)} and {len(other)}.")
    across = _summed(one, weights, other, others) / (weights.sum(1) * others.sum(1))
    return _within(one, weights) + _within(other, others) - 2 * across


def _within(rows: Tensor, weights: Tensor) -> Tensor:
    selves = (rows.square().mean(1) + 1) ** 3
    pairs = weights.sum(1).square() - weights.square().sum(1)
    return (_summed(rows, weights, rows, weights) - weights.square() @ selves) / pairs


def _summed(one: Tensor, weights: Tensor, other: Tensor, others: Tensor) -> Tensor:
    """Return the weighted sums of the kernel over all pairs, block by block."""
    blocks = zip(other.split(BLOCK), others.split(BLOCK, dim=1), strict=True)
    return torch.stack([((weights @ kernel(one, rows)) * w).sum(1) for rows, w in blocks]).sum(0)


# ---- precision and recall --------------------------------------------------------------------------------------------


def radii(rows: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return each row's distance to its k-th nearest other row.

    Raises:
        InputError: when there are not more rows than neighbours.
    """
    if len(rows) <= neighbours:
        raise InputError(f"{neighbours} neighbours need at least {neighbours + 1} pictures; there are {len(rows)}.")
    found = []
    for start, block in _apart(rows, rows):
        block.diagonal(start).fill_(math.inf)
        found.append(block.kthvalue(neighbours).values)
    return torch.cat(found).sqrt()


def inside(rows: Tensor, others: Tensor, *, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return 1 for each row that lies where `others` are: within the radius of any of them; else 0.

    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1.
    """
    same_width(rows.shape[1], others.shape[1])
    reach = radii(others, neighbours).square()
    return torch.cat([(block <= reach).any(1) for _, block in _apart(rows, others)]).double()


def _apart(rows: Tensor, others: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of the first row and squared distances to all others, block by block; rounding counts as 0."""
    rows, others = rows.double(), others.double()
    centre = others.mean(0)
    rows, others = rows - centre, others - centre
    sizes = others.square().sum(1)
    nothing = 1e-13 * sizes.max()
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        apart = block.square().sum(1)[:, None] + sizes - 2 * block @ others.T
        yield start, torch.where(apart > nothing, apart, 0)


# ---- with intervals --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimator:
    """How a distance is found: `of` from two sets as they are, `resampled` for each pair of rows of weights.

    `resamples` and `rows` are the most that an interval takes.
    """

    of: Callable[[Features, Features], float]
    resampled: Callable[[Features, Tensor, Features, Tensor], Tensor]
    resamples: int | None = None
    rows: int = sys.maxsize


DISTANCES = {
    "FID": Estimator(
        lambda made, real: frechet(made.moments, real.moments), _frechets, FRECHET_RESAMPLES, FRECHET_ROWS
    ),
    "KID": Estimator(
        lambda made, real: kernel_distance(made.rows, real.rows),
        lambda made, weights, real, others: _kernels(made.rows.double(), weights, real.rows.double(), others),
    ),
}
"""FID, from the moments of all pictures, and KID, from the rows that are kept."""


def distance(name: str, made: Features, real: Features, *, resamples: int = RESAMPLES, seed: int = 0) -> Measure:
    """Return FID or KID of two sets with its interval; both sets are resampled by group."""
    value = DISTANCES[name].of(made, real)
    (replicates,), count = _resampled(name, (made,), real, resamples=resamples, seed=seed)
    return Measure(name, value, *interval(value, replicates, count), count, "lower")


def compare_distance(
    name: str, first: Features, second: Features, real: Features, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Return how much farther from `real` the first set is than the second, both resampled by the same prompts.

    Raises:
        InputError: when the groups of both differ.
    """
    if first.kinds != second.kinds:
        raise InputError("The two sets do not show the same prompts; compare pictures of the same, or raise `keep`.")
    one, two = DISTANCES[name].of(first, real), DISTANCES[name].of(second, real)
    replicates, count = _resampled(name, (first, second), real, resamples=resamples, seed=seed)
    return Difference(
        name, one - two, *interval(one - two, replicates[0] - replicates[1], count), count, "lower", one, two
    )


def _resampled(
    name: str, sets: tuple[Features, ...], real: Features, *, resamples: int, seed: int
) -> tuple[list[Tensor], int]:
    """Return the distances of each set on resamples, and the number of groups of the smaller side.

    Weights go a part of the way from 1 to how often a group was drawn, and the distances' spread is enlarged by as
    much. To first order that changes nothing; but what two pictures do together, which resampling overstates for a
    distance of equal sets, shrinks. Where only a part of the pictures is kept, the spread is brought to that of all.
    """
    estimator = DISTANCES[name]
    *fewer, less = (side.thinned(estimator.rows) for side in (*sets, real))
    kinds = sorted({kind for side in fewer for kind in side.kinds})
    resamples = min(resamples, estimator.resamples or resamples)
    sizes = (len(kinds), len(less.kinds))
    drawn, more = (counts(size, resamples=resamples, seed=seed + k) for k, size in enumerate(sizes))
    drawn, others = 1 + DAMPED * (drawn - 1), less.weights(1 + DAMPED * (more - 1), less.kinds)
    share = math.sqrt(max(len(side.rows) / len(side) for side in (*fewer, less))) / DAMPED
    found = [share * estimator.resampled(made, made.weights(drawn, kinds), less, others) for made in fewer]
    return found, min(len(side.kinds) for side in (*sets, real))


def precision_and_recall(
    made: Features, real: Features, *, neighbours: int = NEIGHBOURS, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Measure, Measure]:
    """Return which share of made pictures looks like real ones, and of real pictures like made ones.

    The intervals are about the pictures that are judged; those they are held against stay as they are, because a
    picture that is drawn twice would be its own neighbour.
    """
    shares = {
        "precision": inside(made.rows, real.rows, neighbours=neighbours),
        "recall": inside(real.rows, made.rows, neighbours=neighbours),
    }
    found = [measured(name, values, better="higher", resamples=resamples, seed=seed) for name, values in shares.items()]
    precision, recall = (replace(each, low=max(each.low, 0.0), high=min(each.high, 1.0)) for each in found)
    return precision, recall
