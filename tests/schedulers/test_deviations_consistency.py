"""Deliberate differences of the consistency samplers, unCLIP, RePaint and DDIM's inversion from the peer."""

from __future__ import annotations

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.schedulers.oracle import difference, first_noise, network, pair, peer, seeded

pytestmark = pytest.mark.parity


def test_inversion_reads_the_previous_timestep_from_the_table() -> None:
    """Twelve trailing steps of 1000 have no whole stride, so the peer's sample sits beside the level it is told."""
    noise, data = (torch.randn(1, 1, 4, 4, generator=seeded()).double(), torch.full((1, 1, 4, 4), 0.3).double())
    gaps = []
    for scheduler in pair("DDIMInverseScheduler", timestep_spacing="trailing", clip_sample=False):
        scheduler.set_timesteps(12)
        x = data
        for t in scheduler.timesteps:
            x = scheduler.step(noise, t, x).prev_sample
        bar = scheduler.alphas_cumprod[int(scheduler.timesteps[-1])].double()
        gaps.append(float((x - bar.sqrt() * data - (1 - bar).sqrt() * noise).abs().max()))
    assert gaps[0] < 1e-6 < 5e-5 < gaps[1]


def test_inversion_from_clean_data_needs_the_noise() -> None:
    """A prediction of the data in clean data says nothing about the noise; the peer divides by zero."""
    ours, theirs = pair("DDIMInverseScheduler", prediction_type="sample")
    theirs.set_timesteps(4)
    x = first_noise()
    assert not torch.isfinite(theirs.step(network(x, 0), 0, x).prev_sample).all()
    with pytest.raises(ConfigError, match="epsilon"):
        ours.set_timesteps(4)
    langevin.DDIMInverseScheduler(prediction_type="sample", set_alpha_to_one=False).set_timesteps(4)


def test_unclip_steps_to_the_next_timestep_of_the_schedule() -> None:
    """Without `prev_timestep` the peer goes to t - 1 in any schedule, and the documented loop stays in the noise."""
    ends = []
    data, noise = torch.full((1, 1, 4, 4), 0.3), torch.randn(1, 1, 4, 4, generator=seeded())
    for scheduler in pair("UnCLIPScheduler", prediction_type="sample"):
        scheduler.set_timesteps(10)
        x = noise
        for t in scheduler.timesteps[:-1]:
            x = scheduler.step(data, t, x, generator=seeded(int(t))).prev_sample
        ends.append(float((x - data).abs().mean()))
    assert ends[0] < 0.1 and ends[1] > 0.5
    schedulers = pair("UnCLIPScheduler", prediction_type="sample")  # the training table: the same step
    results = [s.step(data, 500, noise, generator=seeded()).prev_sample for s in schedulers]
    assert difference(*results) < 1e-5


def test_unclip_makes_one_step() -> None:
    ours, theirs = pair("UnCLIPScheduler")
    with pytest.raises(ZeroDivisionError):
        theirs.set_timesteps(1)
    ours.set_timesteps(1)
    assert ours.timesteps.tolist() == [999]


def test_unclip_weights_of_the_first_and_the_last_step() -> None:
    """The last weight of the data is beta_0 / (1 - alpha_bar_0) = 1, which is 0.9995 in the peer's float32.

    The first weight of the sample is sqrt(alpha) = 1e-4, which is 0 in the peer: 1 - (1 - alpha).
    """
    data, x = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2)
    ends = [
        float(s.step(data, 0, x).prev_sample.mean()) / 0.5 for s in pair("UnCLIPScheduler", prediction_type="sample")
    ]
    assert abs(ends[0] - 1) < 1e-7 < 4e-4 < abs(ends[1] - 1)
    gaps = []
    for scheduler in pair("UnCLIPScheduler", prediction_type="sample"):
        bars = scheduler.alphas_cumprod.double()
        wanted = (bars[999] / bars[666]).sqrt() * (1 - bars[666]) / (1 - bars[999])
        moved = (scheduler.step(x, 999, x + v, 666, generator=seeded()).prev_sample.double() for v in (1000.0, 0.0))
        with_sample, without = moved
        gaps.append(abs(float((with_sample - without).mean() / 1000 / wanted) - 1))
    assert gaps[0] < 1e-3 < 1e-2 < gaps[1]


def test_last_of_own_timesteps_under_strength() -> None:
    """The peer counts the timesteps before `strength` cut them, and adds noise after the last one."""
    ends = []
    for scheduler in pair("LCMScheduler"):
        results = []
        for seed in (1, 2):
            scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.5)
            assert scheduler.timesteps.tolist() == [499, 259]
            scheduler.set_begin_index(1)
            x, t = first_noise(), scheduler.timesteps[1]
            results.append(scheduler.step(network(x, t), t, x, generator=seeded(seed)).prev_sample)
        ends.append(difference(*results))
    assert ends[0] == 0.0 < 1e-2 < ends[1]


def test_strength_above_one_is_an_error() -> None:
    for name in ("LCMScheduler", "TCDScheduler"):
        ours, theirs = pair(name)
        theirs.set_timesteps(3, strength=2.0)
        assert int(theirs.timesteps[0]) == 1999
        with pytest.raises(InputError, match="at most 1"):
            ours.set_timesteps(3, strength=2.0)


def test_a_jump_ends_at_the_level_of_its_timestep() -> None:
    """The peer multiplies the betas of the T // n steps above the timestep, not those below it: too much noise."""
    steps, gaps = 50, []
    for scheduler in pair("RePaintScheduler"):
        scheduler.set_timesteps(steps)
        data = torch.ones(1, 1, 2, 2)
        for t, before in ((200, 180), (20, 0), (0, -1)):
            low = float(scheduler.alphas_cumprod[before]) if before >= 0 else 1.0
            kept = float(
                scheduler.undo_step(data, t, seeded()).mean() - scheduler.undo_step(0 * data, t, seeded()).mean()
            )
            gaps.append(abs(kept**2 * low / float(scheduler.alphas_cumprod[t]) - 1))
    assert max(gaps[:3]) < 1e-5 < 1e-3 < min(gaps[3:])
    ours, theirs = pair("RePaintScheduler", num_train_timesteps=50)  # every training step is made: the same
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(50)
        results.append(scheduler.undo_step(first_noise(), 20, seeded()))
    assert difference(*results) < 1e-6


def test_repaint_makes_as_many_steps_as_asked() -> None:
    ours, theirs = pair("RePaintScheduler", num_train_timesteps=100)
    theirs.set_timesteps(200)
    assert theirs.num_inference_steps == 100
    with pytest.raises(InputError, match="only 100"):
        ours.set_timesteps(200)


def test_repaint_adds_noise() -> None:
    ours, theirs = pair("RePaintScheduler")
    x, noise, t = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([500])
    with pytest.raises(NotImplementedError):
        theirs.add_noise(x, noise, t)
    assert difference(ours.add_noise(x, noise, t), peer("DDPMScheduler")().add_noise(x, noise, t)) < 1e-6


def test_timesteps_of_consistency_models_are_single_precision() -> None:
    """Networks compute their embedding in float32; accelerators without float64 can hold the schedule."""
    ours, theirs = pair("CMStochasticIterativeScheduler")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(4)
    assert theirs.timesteps.dtype == torch.float64 and ours.timesteps.dtype == torch.float32
    assert difference(ours.timesteps, theirs.timesteps) < 1e-7
