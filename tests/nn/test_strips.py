"""Strips: layers that reach over the border and norms over all strips give the rows of the whole."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from langevin.core.errors import InputError
from langevin.nn.resnet import Downsample, Upsample
from langevin.nn.strips import Strips


@pytest.mark.parametrize("rows", [2, 4, 100])
@pytest.mark.parametrize("height", [1, 2, 9, 12, 13])
@torch.no_grad()
def test_layers_see_over_the_border(height: int, rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, height, 6)
    layers = [(nn.Conv2d(4, 3, 3, padding=1), 1, 1), (nn.Conv2d(4, 3, 5, padding=2), 2, 1), (torch.sin, 0, 1)]
    layers += [(Upsample(4, use_conv=True), 1, 2)]
    if height > 1:  # of one row the layer itself makes nothing but an error
        layers += [(Downsample(4, use_conv=True, padding=0), 2, Fraction(1, 2))]
    for layer, reach, scale in layers:
        strips = Strips.split(x, rows)
        strips.replace(layer, reach=reach, scale=scale)
        torch.testing.assert_close(strips.whole(), layer(x), atol=1e-6, rtol=1e-6)
        assert all(part.shape[-2] for part in strips.parts)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
@torch.no_grad()
def test_norms_share_their_statistics(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 6, 11, 5) + 3 * torch.arange(11.0)[:, None]).to(dtype)
    norm = nn.GroupNorm(3, 6, eps=1e-3).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    strips = Strips.split(x, 4)
    strips.replace(strips.group_norm(norm))
    torch.testing.assert_close(strips.whole(), norm(x), atol=tolerance, rtol=tolerance)
    assert (torch.cat([norm(part) for part in x.split(4, dim=-2)], dim=-2) - norm(x)).abs().max() > 0.5


@torch.no_grad()
def test_a_picture_far_from_zero_keeps_its_contrast() -> None:
    """A sum of squares would lose it: 1e4 squared has no digits left for a spread of 0.01."""
    torch.manual_seed(0)
    x = (1e4 + 0.1 * torch.randn(1, 2, 64, 64, dtype=torch.float64)).float()
    norm = nn.GroupNorm(1, 2)
    spread = Strips.split(x, 8).group_norm(norm)(x).std()
    assert spread == pytest.approx(float(F.group_norm(x.double(), 1).std()), rel=1e-3)


def test_a_strip_may_be_replaced_while_the_map_runs() -> None:
    x = torch.randn(1, 1, 12, 4)
    layer = nn.Conv2d(1, 1, 3, padding=1)
    strips = Strips.split(x, 4)
    results = []
    for index, result in enumerate(strips.map(layer, reach=1)):
        strips[index] = torch.full_like(strips[index], torch.nan)
        results.append(result)
    torch.testing.assert_close(torch.cat(results, dim=-2), layer(x))


def test_gradients_pass() -> None:
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)
    x, weight = torch.randn(1, 4, 9, 5, requires_grad=True), torch.randn(1, 4, 9, 5)
    (expected,) = torch.autograd.grad((norm(layer(x)) * weight).sum(), x)
    strips = Strips.split(x, 4)
    strips.replace(layer, reach=1)
    strips.replace(strips.group_norm(norm))
    (found,) = torch.autograd.grad((strips.whole() * weight).sum(), x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_strips_lower_than_the_reach_are_refused() -> None:
    strips = Strips.split(torch.zeros(1, 1, 4, 4), 1)
    with pytest.raises(InputError, match="strips of 1 rows are too low for a layer that reaches over 2"):
        strips.replace(nn.Conv2d(1, 1, 5, padding=2), reach=2)
