"""Deliberate differences from the peer of the score-based and discrete schedulers; rows of docs/deviations.md."""

from __future__ import annotations

import math

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError
from tests.schedulers.oracle import difference, peer, seeded
from tests.schedulers.test_parity_score import old

pytestmark = pytest.mark.parity


def test_langevin_step_of_an_image_does_not_depend_on_the_batch() -> None:
    """The peer averages the norms over the batch, so that an image depends on its neighbours."""
    x, score = (torch.randn(2, 3, 4, 4, generator=seeded(k)) for k in (1, 2))
    score[1] *= 5.0

    def both(scheduler):
        return scheduler.step_correct(score, x, generator=[seeded(3), seeded(4)]).prev_sample

    def alone(scheduler):
        return scheduler.step_correct(score[1:], x[1:], generator=seeded(4)).prev_sample

    ours, theirs = langevin.ScoreSdeVeScheduler(), peer("ScoreSdeVeScheduler")()
    assert torch.equal(both(ours)[1:], alone(ours))
    assert difference(both(theirs)[1:], alone(theirs)) > 0.02
    assert difference(alone(ours), alone(theirs)) < 1e-6


def test_networks_are_told_the_level_of_the_sample() -> None:
    """The peer tells sigma(t) at times that end at sampling_eps, while its levels end at sigma_min."""
    ours, theirs = langevin.ScoreSdeVeScheduler(), peer("ScoreSdeVeScheduler")()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10, 1e-2)
        scheduler.set_sigmas(10, sampling_eps=1e-2)
    assert difference(ours.sigmas, ours.discrete_sigmas.flip(0)) == 0.0
    assert torch.equal(ours.sigmas[:1], torch.tensor([1348.0]))
    assert float((theirs.sigmas / theirs.discrete_sigmas.flip(0) - 1).abs().max()) > 0.05


def test_every_level_is_visited() -> None:
    """The peer reads the level off the rounded time, and with a larger sampling_eps skips and repeats levels."""
    count, score = 200, torch.ones(1, 1, 1, 1)
    ours, theirs = langevin.ScoreSdeVeScheduler(), peer("ScoreSdeVeScheduler")()
    strides = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(count, 1e-2)
        scheduler.set_sigmas(count, sampling_eps=1e-2)
        x = torch.zeros(1, 1, 1, 1)
        means = [scheduler.step_pred(score, t, x, generator=seeded()).prev_sample_mean for t in scheduler.timesteps]
        strides.append({f"{float(mean):.3e}" for mean in means})
    assert len(strides[0]) == count > len(strides[1])


def test_the_last_step_ends_without_noise() -> None:
    x, output = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    ours, theirs = langevin.ScoreSdeVeScheduler(), peer("ScoreSdeVeScheduler")()
    for scheduler, noisy in ((ours, False), (theirs, True)):
        scheduler.set_timesteps(5)
        scheduler.set_sigmas(5)
        after = scheduler.step_pred(output, scheduler.timesteps[-1], x, generator=seeded())
        assert torch.equal(after.prev_sample, after.prev_sample_mean) is not noisy
    for scheduler, noisy in ((langevin.ScoreSdeVpScheduler(), False), (old("ScoreSdeVpScheduler")(), True)):
        scheduler.set_timesteps(5)
        after, mean = scheduler.step_pred(output, x, scheduler.timesteps[-1], generator=seeded())
        assert torch.equal(after, mean) is not noisy


def test_score_sde_set_timesteps_is_enough() -> None:
    """The peer keeps 2000 levels until `set_sigmas`, and walks along the lowest of them."""
    ours, theirs = langevin.ScoreSdeVeScheduler(), peer("ScoreSdeVeScheduler")()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert len(ours.sigmas) == 7
    assert len(theirs.sigmas) == 2000


def test_karras_ve_levels_are_noise_levels() -> None:
    """The peer's schedule holds squares: from 10000 instead of the configured 100, where its runs start."""
    ours, theirs = langevin.KarrasVeScheduler(), old("KarrasVeScheduler")()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(9)
    assert difference(ours.schedule**2, theirs.schedule) < 1e-5
    assert math.isclose(ours.schedule[-1], ours.init_noise_sigma, rel_tol=1e-6)
    assert math.isclose(ours.schedule[0], 0.02, rel_tol=1e-6)


def test_vq_diffusion_strides_over_the_process() -> None:
    """With fewer steps the peer walks the clean end alone, where a fully masked picture does not belong."""
    config = {"num_vec_classes": 6, "num_train_timesteps": 100}
    ours, theirs = langevin.VQDiffusionScheduler(**config), peer("VQDiffusionScheduler")(**config)
    data = torch.randint(0, 5, (1, 400), generator=seeded(8))
    known = torch.log(torch.nn.functional.one_hot(data, 5).mT.float() * 0.9 + 0.02)
    gaps = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
        first, second = scheduler.timesteps[:2]
        x = scheduler.step(known, first, torch.full_like(data, 5), generator=seeded()).prev_sample
        gaps.append(abs(float((x == 5).float().mean()) - math.exp(scheduler.log_cumprod_ct[second])))
    assert ours.timesteps.tolist() == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]
    assert theirs.timesteps.tolist() == list(range(9, -1, -1))
    assert gaps[0] < 0.05 and gaps[1] > 0.7


def test_vq_diffusion_shares_are_checked() -> None:
    config = {"num_vec_classes": 6, "alpha_cum_start": 0.98, "gamma_cum_start": 0.5}
    assert bool(peer("VQDiffusionScheduler")(**config).log_cumprod_bt.isnan().any())
    with pytest.raises(ConfigError, match="more than the whole"):
        langevin.VQDiffusionScheduler(**config)
