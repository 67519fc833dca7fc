"""Tiles: the blended whole equals the untiled result where the network is local, and covers every size."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from langevin.core.errors import InputError
from langevin.nn.tiling import run_tiled


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 30), (13, 17), (64, 5)])
def test_a_pointwise_network_is_exact_at_every_size(size: tuple[int, int], ramp: str) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(run_tiled(lambda t: 2 * t, x, tile=8, stride=6, ramp=ramp), 2 * x)

    def enlarge(t: torch.Tensor) -> torch.Tensor:
        return F.interpolate(t, scale_factor=4, mode="nearest")

    torch.testing.assert_close(run_tiled(enlarge, x, tile=8, stride=6, scale=4, ramp=ramp), enlarge(x))


def test_shrinking() -> None:
    x = torch.randn(1, 1, 40, 56)
    tiled = run_tiled(lambda t: F.avg_pool2d(t, 4), x, tile=16, stride=12, scale=Fraction(1, 4))
    torch.testing.assert_close(tiled, F.avg_pool2d(x, 4))


def test_a_covered_remainder_is_not_computed() -> None:
    calls = []
    run_tiled(lambda t: calls.append(t.shape[-1]) or t, torch.zeros(1, 1, 4, 16), tile=8, stride=4)
    assert calls == [8, 8, 8]


def test_seams_fade() -> None:
    """Tiles with different brightness meet without a jump, and the cosine is flat at both ends."""
    for ramp, first in (("linear", 0.0), ("cosine", 0.01)):
        x = torch.arange(24.0).view(1, 1, 1, 24)
        row = run_tiled(lambda t: (t[..., :1] > 0).expand_as(t).float(), x, tile=16, stride=8, ramp=ramp)[0, 0, 0]
        assert row[:8].max() == 0 and row[-8:].min() == 1 and row.diff().max() < 0.25
        assert row[8] == pytest.approx(first, abs=0.005)


def test_bad_strides_are_refused() -> None:
    with pytest.raises(InputError, match="cannot advance by 0"):
        run_tiled(lambda t: t, torch.zeros(1, 1, 4, 4), tile=8, stride=0)
    with pytest.raises(InputError, match="cannot advance by 6"):
        run_tiled(lambda t: t, torch.zeros(1, 1, 4, 4), tile=8, stride=6, scale=Fraction(1, 4))
