"""Deliberate differences from the peer in the two-stage, multistep and flow schedulers."""

from __future__ import annotations

import math

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.schedulers.oracle import STABLE, difference, first_noise, network, pair, peer, protocol, seeded, timeless

pytestmark = pytest.mark.parity
TWO_STAGE = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")


def both(name: str, steps: int, **config):
    schedulers = pair(name, **config)
    for scheduler in schedulers:
        scheduler.set_timesteps(steps)
    return schedulers


def test_lms_may_start_anywhere() -> None:
    """A run that starts inside the schedule has no past: the peer weighs it as if it had, and drops those terms."""
    ours, theirs = both("LMSDiscreteScheduler", 10, **STABLE)
    data, noise = torch.full((1, 1, 4, 4), 0.3), torch.randn(1, 1, 4, 4, generator=seeded())
    gaps = []
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(4)
        times = scheduler.timesteps[4:]
        x = scheduler.add_noise(data, noise, times[:1])
        for t in times:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(noise, t, x).prev_sample
        gaps.append(float((x - data).abs().max()))
    assert gaps[0] < 1e-5 < 1e-1 < gaps[1]


@pytest.mark.parametrize("name", TWO_STAGE)
def test_levels_belong_to_their_calls(name: str) -> None:
    """`sigmas[k]` is the level at which the network is asked at `timesteps[k]`, and the last one is the end."""
    ours, theirs = both(name, 5, **STABLE)
    assert len(ours.timesteps) == len(theirs.timesteps) == 9
    assert len(ours.sigmas) == 10 and len(theirs.sigmas) == 12
    assert difference(ours.sigmas[::2], theirs.sigmas[:9:2]) < 1e-6 or float(ours.sigmas[-1]) == 0
    for t, sigma in zip(ours.timesteps.tolist(), ours.sigmas.tolist(), strict=False):
        assert math.isclose(ours.process.time(sigma), t, rel_tol=1e-4, abs_tol=1e-3)
    if name == "KDPM2DiscreteScheduler":
        assert float(theirs.sigmas[1]) < 0.6 * float(ours.sigmas[1])


@pytest.mark.parametrize("name", TWO_STAGE)
def test_karras_levels_keep_their_timesteps(name: str) -> None:
    """The peer rounds the timesteps of the steps, not those between: one level is announced as 785.95 and as 786."""
    ours, theirs = both(name, 5, **STABLE, use_karras_sigmas=True)
    assert float((ours.timesteps - theirs.timesteps).abs().max()) > 0.04
    assert float((ours.timesteps - theirs.timesteps).abs().max()) <= 0.51
    heun, _ = both("HeunDiscreteScheduler", 5, **STABLE, use_karras_sigmas=True)
    assert difference(ours.timesteps[::2], torch.cat([heun.timesteps[:1], heun.timesteps[2::2]])) < 1e-6
    if "Ancestral" in name:
        assert ours.timesteps[1::2].tolist() == ours.timesteps[2::2].tolist()
        assert theirs.timesteps[1::2].tolist() != theirs.timesteps[2::2].tolist()


def test_high_levels() -> None:
    """Cosine betas end at sigma = 20291: the peer's float32 tables lose digits that float64 rows keep."""
    config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler"):
        ours, theirs = both(name, 11, **config)
        exact = protocol(ours, model=timeless, x=first_noise().double() * ours.init_noise_sigma)
        mine, reference = (max(map(difference, protocol(s, model=timeless), exact)) for s in (ours, theirs))
        assert mine < 1e-3 and 10 * mine < reference
    ours, theirs = both("KDPM2AncestralDiscreteScheduler", 11, **config)
    assert torch.isfinite(protocol(ours, model=timeless, generator=seeded())[-1]).all()
    assert difference(ours.timesteps[1::2], ours.timesteps[2::2]) == 0 < difference(theirs.timesteps, ours.timesteps)


def test_every_prediction_is_read() -> None:
    for name in TWO_STAGE:
        ours, theirs = both(name, 6, prediction_type="sample")
        with pytest.raises(NotImplementedError):
            protocol(theirs)
        assert torch.isfinite(protocol(ours)[-1]).all()
    sde = langevin.DPMSolverSDEScheduler(prediction_type="sample")
    sde.set_timesteps(6)
    assert torch.isfinite(protocol(sde, generator=seeded())[-1]).all()


def test_sde_noise_comes_from_the_caller() -> None:
    """The peer needs another package for its noise, and seeds it from a number in the configuration or at random."""
    with pytest.raises(ImportError):
        peer("DPMSolverSDEScheduler")()

    def run(seed=None, **config):
        scheduler = langevin.DPMSolverSDEScheduler(**config)
        scheduler.set_timesteps(5)
        return protocol(scheduler, generator=None if seed is None else seeded(seed))[-1]

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2)) and not torch.equal(run(), run())
    fixed = {"noise_sampler_seed": 5}
    assert torch.equal(run(**fixed), run(**fixed)) and torch.equal(run(1, **fixed), run(2, **fixed))
    scheduler = langevin.DPMSolverSDEScheduler()
    scheduler.set_timesteps(5)
    together = protocol(scheduler, generator=[seeded(1), seeded(2)])[-1]
    x = first_noise()[1:] * scheduler.init_noise_sigma
    alone = protocol(scheduler, x=x, generator=seeded(2))[-1]
    assert torch.allclose(together[1:], alone, rtol=1e-5, atol=1e-6)


def test_ipndm_first_step_reads_the_network() -> None:
    """From pure noise the peer divides 0 by 1e-8 and loses what the network says; the data is -v there."""
    ours, theirs = both("IPNDMScheduler", 8)
    x, ends = first_noise(), []
    for scheduler in (ours, theirs):
        values = []
        for output in (torch.zeros_like(x), torch.ones_like(x)):
            scheduler.set_timesteps(8)
            values.append(scheduler.step(output, scheduler.timesteps[0], x).prev_sample)
        ends.append(float((values[0] - values[1]).abs().max()))
    assert ends[1] < 1e-6 and math.isclose(ends[0], ours.plan(8).grid[1].alpha, rel_tol=1e-5)


def test_ipndm_own_levels_name_the_steps() -> None:
    """With `trained_betas` the peer takes their number of steps, whatever it is asked."""
    ours, theirs = pair("IPNDMScheduler", trained_betas=[0.9, 0.5, 0.1])
    theirs.set_timesteps(7)
    assert len(theirs.timesteps) == 2
    with pytest.raises(InputError, match="name 2 steps"):
        ours.set_timesteps(7)


def test_flow_timesteps_are_their_levels() -> None:
    """Own timesteps are what the network is told, so sigma = t / 1000; the peer shifts sigma but not the timestep."""
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler", shift=3.0)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[1000.0, 500.0, 100.0])
    assert ours.sigmas.tolist() == pytest.approx([1.0, 0.5, 0.1, 0.0])
    assert theirs.sigmas.tolist() == pytest.approx([1.0, 0.75, 0.25, 0.0])
    with pytest.raises(InputError, match="only one of"):
        ours.set_timesteps(timesteps=[1000.0, 500.0], sigmas=[1.0, 0.5])


def test_flow_churn_is_refused() -> None:
    """Noise on top of a sample leaves the path: Heun of the peer is then noisier than announced; Euler ignores it."""
    data, noise = torch.full((1, 4, 16, 16), 0.3), torch.randn(1, 4, 16, 16, generator=seeded())
    ours, theirs = both("FlowMatchHeunDiscreteScheduler", 8)
    spreads = []
    for churn in (0.0, 4.0):
        theirs.set_timesteps(8)
        x = theirs.step(noise - data, theirs.timesteps[0], noise, s_churn=churn, generator=seeded(2)).prev_sample
        sigma = float(theirs.timesteps[1]) / 1000
        spreads.append(float(((x - (1 - sigma) * data) / sigma).std() / noise.std()))
    assert abs(spreads[0] - 1) < 1e-3 and spreads[1] > 1.1
    euler, ignoring = both("FlowMatchEulerDiscreteScheduler", 8)
    plain, churned = protocol_of(ignoring, 0.0), protocol_of(ignoring, 4.0)
    assert torch.equal(plain, churned)
    for scheduler in (ours, euler):
        with pytest.raises(InputError, match="straight path"):
            scheduler.step(noise, scheduler.timesteps[0], noise, s_churn=4.0)


def protocol_of(scheduler, churn: float) -> torch.Tensor:
    x = first_noise()
    scheduler.set_timesteps(8)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, s_churn=churn).prev_sample
    return x


def test_flow_inverted_noising() -> None:
    """With `invert_sigmas` a run starts at timestep 0 with noise; the peer's scale_noise gives clean data there."""
    ours, theirs = both("FlowMatchEulerDiscreteScheduler", 5, invert_sigmas=True)
    x, noise = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    t = ours.timesteps[:1]
    assert float(t) == 0.0
    assert float(ours.scale_noise(x, t, noise).max()) == 0.0
    assert float(theirs.scale_noise(x, t, noise).max()) == 1.0


def test_flow_single_step_with_terminal_level() -> None:
    ours, theirs = both("FlowMatchEulerDiscreteScheduler", 1, shift_terminal=0.1)
    assert ours.sigmas.tolist() == [1.0, 0.0] and not torch.isfinite(theirs.sigmas).all()


def test_flow_shift_of_no_effect() -> None:
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler")
    theirs.set_timesteps(4, mu=0.5)
    with pytest.raises(InputError, match="use_dynamic_shifting"):
        ours.set_timesteps(4, mu=0.5)
    with pytest.raises(InputError, match="needed there"):
        type(ours)(use_dynamic_shifting=True).set_timesteps(4)
    with pytest.raises(InputError, match="above 0"):
        ours.set_shift(0.0)
    with pytest.raises(InputError, match="exponential"):
        type(ours)(time_shift_type="exponentiel")
    with pytest.raises(ConfigError, match="exclude"):
        type(ours)(use_karras_sigmas=True, use_beta_sigmas=True)


def test_flow_heun_lists_every_call_before_a_schedule_is_set() -> None:
    ours, theirs = pair("FlowMatchHeunDiscreteScheduler")
    assert len(ours.timesteps) == 1999 and len(theirs.timesteps) == 1000
    assert difference(ours.timesteps[::2][1:], theirs.timesteps[1:]) < 1e-6


def test_set_timesteps_keeps_the_training_table() -> None:
    """The peer's `num_train_timesteps` of set_timesteps spaces a part of the table; here `timesteps` says which."""
    ours, theirs = pair("HeunDiscreteScheduler")
    theirs.set_timesteps(5, num_train_timesteps=500)
    with pytest.raises(ConfigError, match="num_train_timesteps"):
        ours.set_timesteps(5, num_train_timesteps=500)
    ours.set_timesteps(timesteps=[float(t) for t in theirs.timesteps.unique().flip(0)])
    assert difference(ours.timesteps, theirs.timesteps) < 1e-6
    assert max(map(difference, protocol(ours), protocol(theirs))) < 1e-5


def test_flow_heun_noises_to_the_level_that_is_asked() -> None:
    """The peer remembers the level of the first call and uses it for every later one."""
    ours, theirs = both("FlowMatchHeunDiscreteScheduler", 8)
    x, noise = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    for k in (2, 6):
        t = theirs.timesteps[k : k + 1]
        wanted = 1 - float(t) / 1000
        assert math.isclose(float(ours.scale_noise(x, t, noise)[0, 0, 0, 0]), wanted, rel_tol=1e-4)
        gap = abs(float(theirs.scale_noise(x, t, noise)[0, 0, 0, 0]) - wanted)
    assert gap > 0.1
