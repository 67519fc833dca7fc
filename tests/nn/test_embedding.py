"""Embeddings and feed-forward networks against the peer."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError
from langevin.nn import embedding as ours
from langevin.nn.transformer import FeedForward

TIMES = torch.tensor([0.0, 1.0, 37.5, 999.0])


@pytest.fixture(scope="module")
def peer() -> Any:
    return importlib.import_module("diffusers.models.embeddings")


@pytest.mark.parity
@pytest.mark.parametrize("channels", [8, 9, 320])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (1, 1), (0, 1000)])
def test_timesteps(channels: int, flip: bool, shift: int, scale: int, peer: Any) -> None:
    expected = peer.Timesteps(channels, flip, shift, scale)(TIMES)
    order = {"flip_sin_to_cos": flip, "downscale_freq_shift": shift}
    assert torch.equal(ours.sinusoidal(TIMES, channels, **order, scale=scale), expected)
    if scale == 1:
        assert torch.equal(ours.Timesteps(channels, flip, shift)(TIMES), expected)


@pytest.mark.parity
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_fourier(log: bool, flip: bool, peer: Any) -> None:
    theirs = peer.GaussianFourierProjection(8, scale=16, log=log, flip_sin_to_cos=flip)
    mine = ours.GaussianFourierProjection(8, scale=16, log=log, flip_sin_to_cos=flip)
    mine.load_state_dict(theirs.state_dict())
    assert torch.allclose(mine(TIMES + 0.1), theirs(TIMES + 0.1), atol=1e-4)
    assert not mine.weight.requires_grad


@pytest.mark.parity
def test_timestep_embedding(peer: Any) -> None:
    theirs = peer.TimestepEmbedding(8, 16, act_fn="gelu", post_act_fn="silu", cond_proj_dim=5)
    mine = ours.TimestepEmbedding(8, 16, act_fn="gelu", post_act_fn="silu", cond_proj_dim=5)
    mine.load_state_dict(theirs.state_dict())
    x, condition = torch.randn(2, 8), torch.randn(2, 5)
    assert torch.allclose(mine(x, condition), theirs(x, condition), atol=1e-6)
    assert torch.allclose(mine(x), theirs(x), atol=1e-6)


POOLED: dict[str, tuple[tuple, tuple[tuple[int, ...], ...]]] = {
    "TextTimeEmbedding": ((32, 48, 4), ((2, 7, 32),)),
    "TextImageTimeEmbedding": ((32, 24, 48), ((2, 32), (2, 24))),
    "ImageTimeEmbedding": ((24, 48), ((2, 24),)),
    "ImageHintTimeEmbedding": ((24, 48), ((2, 24), (2, 3, 16, 16))),
    "TextImageProjection": ((32, 24, 16, 3), ((2, 7, 32), (2, 24))),
    "ImageProjection": ((24, 16, 3), ((2, 24),)),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", POOLED)
def test_projections(name: str, peer: Any) -> None:
    arguments, shapes = POOLED[name]
    theirs, mine = getattr(peer, name)(*arguments), getattr(ours, name)(*arguments)
    mine.load_state_dict(theirs.state_dict())
    given = [torch.randn(shape) for shape in shapes]
    expected, out = theirs(*given), mine(*given)
    expected, out = (x if isinstance(x, tuple) else (x,) for x in (expected, out))
    for a, b in zip(expected, out, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["geglu", "gelu"])
def test_feed_forward(kind: str) -> None:
    peer = importlib.import_module("diffusers.models.attention")
    theirs, mine = peer.FeedForward(8, activation_fn=kind), FeedForward(8, activation_fn=kind)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8)
    assert torch.allclose(mine(x), theirs(x), atol=1e-6)


def test_unknown_feed_forward() -> None:
    with pytest.raises(ConfigError, match="'geglu'"):
        FeedForward(8, activation_fn="gegelu")


def test_times_of_a_batch() -> None:
    device = torch.device("cpu")
    assert ours.batch_timesteps(3, 2, device).tolist() == [3, 3]
    assert ours.batch_timesteps(0.5, 2, device).tolist() == [0.5, 0.5]
    assert ours.batch_timesteps(torch.tensor([3]), 2, device).tolist() == [3, 3]
    assert ours.batch_timesteps(torch.tensor([3, 4]), 2, device).tolist() == [3, 4]
