"""The moving average: its closed form, and the peer's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from langevin.core.errors import InputError
from langevin.training.average import Average, Decay


def test_the_closed_form_of_a_constant_decay() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average, kept = Average([weight], Decay(0.9, lowest=0.9)), 0.9
    expected = None
    for value in range(1, 30):
        weight.data.fill_(float(value))
        average.update()
        expected = float(value) if expected is None else kept * expected + (1 - kept) * value
    assert float(average.values[0]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"highest": 0.5}, {"decay": 0.5}),
        ({"lowest": 0.4}, {"min_decay": 0.4}),
        ({"begin": 5}, {"update_after_step": 5}),
        ({"warmup": True, "power": 0.75, "inv_gamma": 2.0}, {"use_ema_warmup": True, "power": 0.75, "inv_gamma": 2.0}),
    ],
)
def test_the_averages_are_the_peers(ours: dict, theirs: dict) -> None:
    from diffusers.training_utils import EMAModel

    stream = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=stream)) for shape in ((3, 2), (5,))]
    average, peer = Average(weights, Decay(**ours)), EMAModel(weights, **theirs)
    for _ in range(25):
        for weight in weights:
            weight.data += torch.randn(weight.shape, generator=stream)
        average.update()
        peer.step(weights)
    for one, other in zip(average.values, peer.shadow_params, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_weights_are_their_averages_within_the_context_and_come_back() -> None:
    weight = nn.Parameter(torch.randn(4))
    average = Average([weight])
    average.update()
    weight.data += 1
    average.update()
    before, mean = weight.detach().clone(), average.values[0].clone()
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(weight, mean) and not torch.equal(mean, before)
        raise RuntimeError
    assert torch.equal(weight, before)


def test_averages_of_half_precision_are_kept_in_float32() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = Average([weight], Decay(0.9999, lowest=0.9999))
    average.update()
    weight.data.fill_(2.0)
    average.update()
    assert average.values[0].dtype is torch.float32
    assert float(average.values[0]) == pytest.approx(1.0001, abs=1e-6)


def test_a_state_goes_there_and_back() -> None:
    weight = nn.Parameter(torch.randn(4))
    one, other = Average([weight]), Average([weight])
    for _ in range(3):
        weight.data += 1
        one.update()
    other.restore(one.state())
    weight.data += 1
    one.update()
    other.update()
    assert torch.equal(one.values[0], other.values[0]) and one.updates == other.updates == 4


@pytest.mark.parametrize("wrong", [{"highest": 1.0}, {"lowest": -0.1}, {"highest": 0.5, "lowest": 0.6}])
def test_a_decay_that_averages_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        Decay(**wrong)
