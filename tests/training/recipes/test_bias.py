"""Noise levels that a run sees more often than others, against shares that were counted by hand."""

from __future__ import annotations

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion.objective import Noising, Objective
from langevin.training.denoising import Denoiser
from langevin.training.heldout import Spread
from langevin.training.recipes.sdxl import FullSettings
from langevin.training.streams import Draw, Streams

BASE = {"pretrained_model_name_or_path": "base", "train_data_dir": "pictures"}
RANGE = {"timestep_bias_begin": 200, "timestep_bias_end": 300}


def settings(strategy: str = "none", multiplier: float = 1.0, **more: float) -> FullSettings:
    flags = {"timestep_bias_strategy": strategy, "timestep_bias_multiplier": multiplier, **more}
    return FullSettings(**BASE, **flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategy", "more", "preferred"),
    [
        ("earlier", {}, range(250)),
        ("later", {"timestep_bias_portion": 0.1}, range(900, 1000)),
        ("range", RANGE, range(200, 300)),
    ],
)
def test_levels_come_as_often_as_their_odds_say(strategy: str, more: dict, preferred: range) -> None:
    chosen = settings(strategy, 3.0, **more)
    chosen.check()
    denoiser = chosen.denoiser(langevin.DDPMScheduler())
    chances = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    counts = torch.bincount(denoiser.numbers(chances, even=False), minlength=1000) / 100_000
    whole = 3 * len(preferred) + 1000 - len(preferred)
    expected = torch.tensor([(3 if k in preferred else 1) / whole for k in range(1000)])
    torch.testing.assert_close(counts, expected, atol=1.1e-5, rtol=0)
    even = denoiser.numbers(chances, even=True)
    assert torch.equal(even, settings().denoiser(langevin.DDPMScheduler()).numbers(chances, even=False))


def test_a_run_draws_by_the_odds_and_what_is_held_out_is_seen_at_all_levels_alike() -> None:
    noising = Noising.of(langevin.DDPMScheduler().process)
    odds = torch.zeros(1000)
    odds[700] = 1
    denoiser = Denoiser(noising, Objective(), odds)
    net = lambda x, t, return_dict: (x,)  # noqa: E731
    positions = range(4)
    drawn = denoiser(net, torch.zeros(4, 1, 2, 2), Draw(Streams(0), positions))
    assert drawn.level.tolist() == [700] * 4
    spread = Spread(Streams(0), positions, "cpu", {k: (k + 0.5) / 4 for k in positions})
    assert denoiser(net, torch.zeros(4, 1, 2, 2), spread).level.tolist() == [125, 375, 625, 875]


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"strategy": "late"}, InputError, "later"),
        ({"strategy": "later", "multiplier": 0.0}, InputError, "timestep_bias_multiplier"),
        ({"multiplier": 2.0}, ConfigError, "no effect"),
        ({"strategy": "later", "timestep_bias_portion": 1.5}, InputError, "from 0 to 1"),
        ({"strategy": "range", "timestep_bias_begin": 300, "timestep_bias_end": 200}, InputError, "begin < end"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(flags: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        settings(**flags).check()


def test_a_range_behind_the_last_level_is_refused() -> None:
    with pytest.raises(InputError, match="250 levels"):
        settings("range", 2.0, **RANGE).denoiser(langevin.DDPMScheduler(num_train_timesteps=250))
