"""Every deliberate difference from the peer: what it does, what ours does, and why ours is right."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.schedulers.oracle import (
    NAMES,
    STABLE,
    difference,
    first_noise,
    gap_in_double,
    network,
    pair,
    peer,
    protocol,
    seeded,
    timeless,
)

pytestmark = pytest.mark.parity


def both(name: str, steps: int, **config):
    schedulers = pair(name, **config)
    for scheduler in schedulers:
        scheduler.set_timesteps(steps)
    return schedulers


def recovered(scheduler, **options) -> float:
    """Return how far a run with the exact noise as prediction ends from the data it started from."""
    data, noise = (v.double() for v in (torch.full((1, 3, 4, 4), 0.3), torch.randn(1, 3, 4, 4, generator=seeded())))
    x = scheduler.add_noise(data, noise, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(noise, t, x, **options).prev_sample
    return float((x - data).abs().max())


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_previous_timestep_is_read_from_the_table(name: str, spacing: str) -> None:
    """Twelve steps of 1000 have no whole stride: a fixed one lands beside the next timestep."""
    options = {"clip_sample": False} if name == "DDIMScheduler" else {"skip_prk_steps": True}
    ours, theirs = both(name, 12, timestep_spacing=spacing, set_alpha_to_one=True, **options)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert recovered(ours) < 1e-6
    assert recovered(theirs) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_offset_stays_inside_the_table(name: str) -> None:
    """1000 of 1000 steps with an offset of 1: the peer asks for timestep 1000, or for timestep 1 a thousand times."""
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    ours, theirs = both(name, 1000, timestep_spacing="leading", steps_offset=1, **options)
    assert int(theirs.timesteps.max()) in (1000, 1)
    assert int(ours.timesteps.max()) == 999
    assert len(set(ours.timesteps.tolist())) == 1000


@pytest.mark.parametrize("name", NAMES)
def test_as_many_trailing_steps_as_asked(name: str) -> None:
    """61 trailing steps: accumulated rounding gives the peer a 62nd timestep, -1."""
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    ours, theirs = both(name, 61, timestep_spacing="trailing", **options)
    assert int(theirs.timesteps[-1]) == -1
    assert int(ours.timesteps.min()) >= 0
    assert len(set(ours.timesteps.tolist())) == 61


@pytest.mark.parametrize("levels", ["use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_no_timestep_is_asked_twice(levels: str) -> None:
    """Rounding gives the peer fewer distinct timesteps than steps; ours keep the fractions that would coincide."""
    ours, theirs = both("DPMSolverMultistepScheduler", 100, **STABLE, **{levels: True})
    assert len(set(theirs.timesteps.tolist())) < 100
    assert len(set(ours.timesteps.tolist())) == 100
    assert float((ours.timesteps - theirs.timesteps).abs().max()) <= 1.0
    few, reference = both("DPMSolverMultistepScheduler", 10, **STABLE, use_karras_sigmas=True)
    assert few.timesteps.tolist() == reference.timesteps.tolist() and few.timesteps.dtype == torch.int64


@pytest.mark.parametrize("levels", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_highest_level_keeps_its_timestep(levels: str) -> None:
    """The noise level of timestep 999 is announced as 998 by the peer: 998.99999 rounded down."""
    ours, theirs = both("DPMSolverMultistepScheduler", 11, **STABLE, **{levels: True})
    assert difference(ours.sigmas, theirs.sigmas) < 1e-6
    assert int(theirs.timesteps[0]) == 998 and int(ours.timesteps[0]) == 999


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_ddpm_adds_no_noise_in_the_last_step(variance: str) -> None:
    """Algorithm 2 of the paper ends with the mean; the peer looks at t > 0 only, and trailing runs end above 0."""
    doubled = variance.startswith("learned")
    ours, theirs = both("DDPMScheduler", 5, timestep_spacing="trailing", variance_type=variance)
    mine = protocol(ours, doubled=doubled, generator=seeded())
    reference = protocol(theirs, doubled=doubled, generator=seeded())
    assert max(map(difference, mine[:-1], reference[:-1])) < 1e-5
    assert difference(mine[-1], reference[-1]) > 0.1
    x, t = mine[-2], ours.timesteps[-1]
    alpha_bar = ours.alphas_cumprod[t]
    data = (x - (1 - alpha_bar).sqrt() * network(x, t)) / alpha_bar.sqrt()
    assert difference(mine[-1], data.clamp(-1, 1)) < 1e-5


def test_ddpm_fixed_large_log() -> None:
    """The peer takes the square root of a negative logarithm; ours is the same variance as "fixed_large"."""
    ours, theirs = both("DDPMScheduler", 10, variance_type="fixed_large_log")
    assert not torch.isfinite(protocol(theirs, generator=seeded())[-1]).all()
    same = langevin.DDPMScheduler(variance_type="fixed_large")
    same.set_timesteps(10)
    assert torch.equal(protocol(ours, generator=seeded())[-1], protocol(same, generator=seeded())[-1])


def test_ddpm_learned_variance_below_zero() -> None:
    """A predicted variance below zero is NaN in the peer and the smallest variance here."""
    ours, theirs = both("DDPMScheduler", 10, variance_type="learned", clip_sample=False)
    assert not torch.isfinite(protocol(theirs, doubled=True, generator=seeded())[-1]).all()
    assert torch.isfinite(protocol(ours, doubled=True, generator=seeded())[-1]).all()


def gaussian_error(scheduler, steps: int, kind: str) -> float:
    """Return the error of a run on Gaussian data, for which the exact prediction and the exact end are known."""
    mean, deviation = 0.7, 0.5
    bars = scheduler.alphas_cumprod.double()

    def exact(x, t, doubled=False):
        alpha, sigma = bars[int(t)].sqrt(), (1 - bars[int(t)]).sqrt()
        eps = sigma * (x - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)
        return eps if kind == "epsilon" else alpha * eps - sigma * (x - sigma * eps) / alpha

    scheduler.set_timesteps(steps)
    x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    first, last = bars[int(scheduler.timesteps[0])], bars[0]
    score = (x - first.sqrt() * mean) / (first * deviation**2 + 1 - first).sqrt()
    wanted = last.sqrt() * mean + score * (last * deviation**2 + 1 - last).sqrt()
    return float((protocol(scheduler, model=exact, x=x)[-1] - wanted).abs().max())


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_combines_noise_predictions(skip: bool) -> None:
    """The method is defined for noise: mixing velocities of several levels, as the peer does, is of first order."""
    ours, theirs = pair("PNDMScheduler", **STABLE, prediction_type="v_prediction", skip_prk_steps=skip)
    for steps in (40, 100):
        assert 3 * gaussian_error(ours, steps, "v_prediction") < gaussian_error(theirs, steps, "v_prediction")
    same, reference = pair("PNDMScheduler", **STABLE, skip_prk_steps=skip)
    assert math.isclose(gaussian_error(same, 40, "epsilon"), gaussian_error(reference, 40, "epsilon"), rel_tol=1e-2)


def test_pndm_runs_with_fewer_than_four_steps() -> None:
    """The Runge-Kutta start of the peer needs four steps; ours takes as many as there are."""
    ours, theirs = pair("PNDMScheduler")
    for steps in (1, 2, 3):
        with pytest.raises(ValueError):
            theirs.set_timesteps(steps)
        ours.set_timesteps(steps)
        assert len(ours.timesteps) == 4 * (steps - 1) + 1
        assert recovered(ours) < 0.05


def test_pndm_middle_level_is_where_the_network_is_asked() -> None:
    """With an odd stride the peer moves the sample to timestep 813 and asks the network at 812."""
    ours, theirs = both("PNDMScheduler", 8, set_alpha_to_one=True)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    noise, data = torch.randn(1, 1, 4, 4, generator=seeded()), torch.full((1, 1, 4, 4), 0.3)
    gaps = []
    for scheduler in (ours, theirs):
        x = scheduler.add_noise(data, noise, scheduler.timesteps[:1])
        x = scheduler.step(noise, scheduler.timesteps[0], x).prev_sample
        gaps.append(float((x - scheduler.add_noise(data, noise, scheduler.timesteps[1:2])).abs().max()))
    assert gaps[0] < 1e-6 < 1e-4 < gaps[1]


def test_pndm_may_start_anywhere() -> None:
    """A run that starts inside the schedule has no corrector call to match; the peer then lags one level behind."""
    ours, theirs = both("PNDMScheduler", 20, skip_prk_steps=True, set_alpha_to_one=True)
    noise, data = torch.randn(1, 1, 4, 4, generator=seeded()), torch.full((1, 1, 4, 4), 0.3)
    ends = []
    for scheduler in (ours, theirs):
        times = scheduler.timesteps[8:]
        x = scheduler.add_noise(data, noise, times[:1])
        middle = [x]
        for t in times:
            x = scheduler.step(noise, t, x).prev_sample
            middle.append(x)
        wanted = scheduler.add_noise(data, noise, times[4:5])
        ends.append(float((middle[4] - wanted).abs().max()))
    assert ends[0] < 1e-5 < 1e-2 < ends[1]


def test_euler_log_linear_levels() -> None:
    """The peer's levels and timesteps do not belong together, and its run ends at sigma_min instead of 0."""
    ours, theirs = both("EulerDiscreteScheduler", 5, interpolation_type="log_linear")
    assert difference(ours.sigmas[:5], theirs.sigmas[:5]) < 1e-6
    assert len(theirs.sigmas) == 7 and len(ours.sigmas) == 6 and float(ours.sigmas[-1]) == 0
    table = np.sqrt((1 - ours.process.alphas_cumprod) / ours.process.alphas_cumprod)
    for t, sigma in zip(ours.timesteps.tolist(), ours.sigmas.tolist(), strict=False):
        assert table[math.floor(t)] <= sigma * (1 + 1e-5) and sigma <= table[math.ceil(t)] * (1 + 1e-5)
    assert recovered(ours) < 1e-6 < 1e-3 < recovered(theirs)


def test_euler_ancestral_at_high_levels() -> None:
    """sigma_down is a difference of large numbers: NaN or rounding in the peer's float32, exact in float64."""
    ours, theirs = both("EulerAncestralDiscreteScheduler", 4, beta_schedule="squaredcos_cap_v2")
    assert not torch.isfinite(protocol(theirs, generator=seeded())[-1]).all()
    assert torch.isfinite(protocol(ours, generator=seeded())[-1]).all()
    for schedule in ("linear", "squaredcos_cap_v2"):
        config = {"beta_schedule": schedule, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        both_in_double = pair("EulerAncestralDiscreteScheduler", timestep_spacing="trailing", **config)
        assert gap_in_double(*both_in_double, 11) < 1e-5


def test_euler_ancestral_reads_data_predictions() -> None:
    ours, theirs = both("EulerAncestralDiscreteScheduler", 6, prediction_type="sample")
    with pytest.raises(NotImplementedError):
        protocol(theirs, generator=seeded())
    assert torch.isfinite(protocol(ours, generator=seeded())[-1]).all()


def test_ddim_ancestral_from_pure_noise() -> None:
    """At zero signal-to-noise ratio and eta = 1 the kept noise is exactly 0.

    The peer's float32 leaves 1e-4 of it, or on some machines the root of a negative number.
    """
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    ours, theirs = both("DDIMScheduler", 4, clip_sample=False, **config)
    mine = protocol(ours, eta=1.0, generator=seeded())
    reference = protocol(theirs, eta=1.0, generator=seeded())
    assert torch.isfinite(mine[-1]).all() and not difference(reference[0], mine[0]) < 1e-6
    assert gap_in_double(ours, theirs, 4, eta=0.999) < 1e-9
    assert ours.plan(4, eta=1.0).rows[0].direction == 0.0


def test_noise_prediction_at_zero_snr_is_refused() -> None:
    """A prediction of the noise in pure noise says nothing; the peer divides by zero and clips the infinity."""
    for name in ("DDIMScheduler", "DDPMScheduler"):
        ours, theirs = pair(name, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
        theirs.set_timesteps(4)
        t = theirs.timesteps[0]
        assert not torch.isfinite(theirs.step(first_noise(), t, first_noise()).pred_original_sample).all()
        with pytest.raises(ConfigError, match="v_prediction"):
            ours.set_timesteps(4)


def test_third_order_sde_solver() -> None:
    """The SDE's third-order weights are the ODE's at twice h; the peer's have a wrong sign ("++") or are missing."""
    lam = [0.0, 0.4, 0.7, 1.1]
    config = {
        "solver_order": 3,
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
        "prediction_type": "sample",
    }
    sigmas = [math.exp(-v) for v in lam] + [0.01]
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        plan = langevin.DPMSolverMultistepScheduler(algorithm_type=algorithm, **config).plan(sigmas=sigmas)
        row, factor = plan.rows[2], 2.0 if algorithm.startswith("sde") else 1.0
        half = integrate(lam, factor) * plan.grid[3].alpha / 2  # the published weight, see DPMMultistep.exact_third
        got = sum(w * (v - 0.7) ** 2 for w, v in zip(row.outputs, lam[2::-1], strict=True))
        assert math.isclose(got, half, rel_tol=1e-9)
    ours, theirs = both("DPMSolverMultistepScheduler", 12, algorithm_type="sde-dpmsolver++", solver_order=3)
    mine, reference = (protocol(s, generator=seeded()) for s in (ours, theirs))
    assert max(map(difference, mine[:2], reference[:2])) < 1e-5 < 1e-3 < difference(mine[3], reference[3])
    ours, theirs = both(
        "DPMSolverMultistepScheduler", 12, algorithm_type="sde-dpmsolver", solver_order=3, final_sigmas_type="sigma_min"
    )
    with pytest.raises(UnboundLocalError):
        protocol(theirs, generator=seeded())
    assert torch.isfinite(protocol(ours, generator=seeded())[-1]).all()


def integrate(lam: list[float], factor: float) -> float:
    """Return factor * integral of exp(-factor * (end - u)) * (u - start)^2 over the last step, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half = (lam[3] - lam[2]) / 2
    u = lam[2] + half * (nodes + 1)
    return float(half * (weights * factor * np.exp(-factor * (lam[3] - u)) * (u - lam[2]) ** 2).sum())


def test_last_step_without_length() -> None:
    """Karras levels with final_sigmas_type="sigma_min" end twice at the same level: NaN in the peer at order 3."""
    config = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_order": 3}
    ours, theirs = both("DPMSolverMultistepScheduler", 20, **STABLE, **config)
    assert not torch.isfinite(protocol(theirs, model=timeless)[-1]).all()
    mine = protocol(ours, model=timeless)
    assert difference(mine[-1], mine[-2]) < 1e-6


def test_flow_prediction_needs_flow_levels() -> None:
    theirs = peer("DPMSolverMultistepScheduler")(prediction_type="flow_prediction")
    theirs.set_timesteps(5)
    assert torch.isfinite(protocol(theirs)[-1]).all()
    with pytest.raises(ConfigError, match="use_flow_sigmas"):
        langevin.DPMSolverMultistepScheduler(prediction_type="flow_prediction")
    eps = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "sigma_min"}
    ours, theirs = both("DPMSolverMultistepScheduler", 5, algorithm_type="dpmsolver", **eps)
    with pytest.raises(ValueError):
        protocol(theirs)
    assert torch.isfinite(protocol(ours)[-1]).all()


def test_dpm_noising_before_a_schedule_is_set() -> None:
    """The peer's table of levels runs the other way than its timesteps until set_timesteps is called."""
    ours, theirs = pair("DPMSolverMultistepScheduler")
    x, noise = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    t = torch.tensor([990.0])
    wanted = float(ours.alphas_cumprod[990].sqrt())
    assert math.isclose(float(ours.add_noise(x, noise, t)[0, 0, 0, 0]), wanted, rel_tol=1e-5)
    assert float(theirs.add_noise(x, noise, t)[0, 0, 0, 0]) > 10 * wanted


def test_unknown_options_are_errors() -> None:
    ours, theirs = pair("DPMSolverMultistepScheduler")
    name = "use_karas_sigmas"
    assert type(theirs).from_config(theirs.config, **{name: True}).config.use_karras_sigmas is False
    with pytest.raises(ConfigError, match="use_karras_sigmas"):
        type(ours).from_config(ours.config, **{name: True})


@pytest.mark.parametrize("name", NAMES)
def test_zero_steps_are_an_error(name: str) -> None:
    ours, theirs = pair(name)
    for steps in (0, -3, 2.5, True):
        with pytest.raises(InputError, match="num_inference_steps"):
            ours.set_timesteps(steps)
    with contextlib.suppress(ZeroDivisionError):
        theirs.set_timesteps(0)


def test_step_without_a_schedule() -> None:
    """Every sampler steps along the training table until set_timesteps is called; in the peer only some do."""
    x = first_noise()
    for name in NAMES:
        ours, theirs = pair(name)
        assert torch.isfinite(ours.step(network(x, 500), 500, x).prev_sample).all()
        if name != "DDPMScheduler":
            with pytest.raises((ValueError, TypeError)):
                theirs.step(network(x, 500), 500, x)


def test_a_loop_may_run_twice() -> None:
    """A second pass over `timesteps` starts a new run; the peer runs off the end of its table."""
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        ours, theirs = both(name, 6)
        assert torch.equal(protocol(ours)[-1], protocol(ours)[-1])
        protocol(theirs)
        with pytest.raises(IndexError):
            protocol(theirs)


def test_custom_timesteps_and_sigmas_for_every_sampler() -> None:
    """A schedule is independent of the sampler; the peer takes own timesteps in some classes and own sigmas in one."""
    for name in NAMES:
        ours = getattr(langevin, name)(**STABLE)
        ours.set_timesteps(timesteps=[950, 700, 300, 20])
        assert ours.num_inference_steps == 4 and torch.isfinite(protocol(ours)[-1]).all()
        ours.set_timesteps(sigmas=[10.0, 3.0, 1.0, 0.3, 0.0])
        assert torch.isfinite(protocol(ours)[-1]).all()
        with pytest.raises(InputError, match="descend"):
            ours.set_timesteps(timesteps=[20, 700])
