"""Steps of many noise levels at once, as Picard iterations make them: Shih et al. 2023 (2305.16317)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .rows import widen
from .table import Plan


def step_each(plan: Plan, positions: Sequence[int], x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return row k of the batch after step `positions[k]` of `plan`, without the noise of stochastic rows.

    Args:
        plan: a run whose rows look at the present prediction of the data alone.
        x, output: the samples and the network's outputs, shape (batch, ...).
    """
    rows, prediction, dtype = [plan.rows[k] for k in positions], plan.prediction, x.dtype
    x, (output, _) = widen(x), prediction.split(widen(output), x)
    pairs = [prediction.pairs(row.level) for row in rows]
    numbers = [(*d, *e, row.sample, row.outputs[0], row.direction) for (d, e), row in zip(pairs, rows, strict=True)]
    table = torch.tensor(numbers, dtype=torch.float64).T.to(x.dtype).to(x.device)
    skip, scale, rest, share, sample, data, direction = table.reshape(7, -1, *(1 for _ in x.shape[1:]))
    x0, eps = prediction.bound(skip * x + scale * output), rest * x + share * output
    return (sample * x + data * x0 + direction * eps).to(dtype)
