"""Consistency samplers, unCLIP, RePaint, DDIM's inversion and the parallel schedulers against the peer."""

from __future__ import annotations

import itertools

import pytest
import torch

import langevin
from langevin.diffusion.solvers import jumps
from tests.schedulers.oracle import (
    COUNTS,
    EVERY,
    KINDS,
    SHAPE,
    compare,
    counted,
    difference,
    each,
    failures,
    first_noise,
    network,
    pair,
    peer,
    planned,
    product,
    seeded,
)

pytestmark = pytest.mark.parity
BOUNDS = (
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 1.5},
    {"clip_sample": False, "thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9},
)


def joined(*parts):
    """Return the product of lists of dictionaries, each choice merged into one."""
    for choice in itertools.product(*parts):
        yield {key: value for part in choice for key, value in part.items()}


def runs(pairs, schedule, *, step, spare=0, dtype=torch.float32):
    """Run `step(scheduler, k, x, generator)` over both, but for `spare` steps at each end; return the largest gap."""
    samples = []
    for scheduler in each(*pairs, dtype=dtype):
        scheduler.set_timesteps(**schedule)
        generator, x, seen = seeded(), first_noise().to(dtype) * float(scheduler.init_noise_sigma), []
        for k in range(spare, len(scheduler.timesteps) - spare):
            x = step(scheduler, k, x, generator)
            seen.append(x)
        samples.append((seen, generator.get_state()))
    (mine, state), (reference, other) = samples
    assert len(mine) == len(reference) and torch.equal(state, other)
    return max(map(difference, mine, reference))


def plain(scheduler, k, x, generator):
    t = scheduler.timesteps[k]
    return scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, generator=generator).prev_sample


# ---- DDIM inversion and parallel steps -------------------------------------------------------------------------------


def test_ddim_inverse() -> None:
    cases = joined(
        [{"prediction_type": k, "set_alpha_to_one": o} for k in KINDS for o in (True, False) if k != "sample" or not o],
        [{"steps_offset": n} for n in (0, 1)],
        [{"rescale_betas_zero_snr": z} for z in (False, True)],
        BOUNDS[:2],
        [{"beta_schedule": b} for b in ("linear", "scaled_linear", "squaredcos_cap_v2")],
    )  # fmt: skip
    assert failures("DDIMInverseScheduler", counted(cases)) == []
    whole = joined([{"timestep_spacing": "trailing"}], [{"prediction_type": k} for k in KINDS[::2]], BOUNDS[:2])
    assert failures("DDIMInverseScheduler", counted(whole, counts=(4, 25, 50))) == []


def test_ddim_parallel() -> None:
    cases = joined(
        BOUNDS, [{"prediction_type": k} for k in KINDS], [{"set_alpha_to_one": one} for one in (True, False)]
    )
    turns = (
        (n, c, {"eta": eta, "use_clipped_model_output": clipped, "stochastic": True})
        for c, (eta, clipped, n) in zip(cases, itertools.cycle(itertools.product((0.0, 0.6), (False, True), (4, 25))))
    )
    assert failures("DDIMParallelScheduler", turns, limit=3e-5) == []


def test_ddpm_parallel() -> None:
    variances = [{"variance_type": v} for v in ("fixed_small", "fixed_small_log", "fixed_large")]
    cases = joined(BOUNDS, [{"prediction_type": k} for k in KINDS], variances)
    assert failures("DDPMParallelScheduler", counted(cases, stochastic=True)) == []
    learned = joined([{"variance_type": "learned_range"}], [{"prediction_type": k} for k in KINDS])
    assert failures("DDPMParallelScheduler", counted(learned, stochastic=True, doubled=True)) == []


@pytest.mark.parametrize("name", ["DDIMParallelScheduler", "DDPMParallelScheduler"])
def test_steps_of_many_timesteps(name: str) -> None:
    for config in itertools.islice(joined(BOUNDS, [{"prediction_type": k} for k in KINDS]), 0, None, EVERY):
        x = torch.randn((5, *SHAPE[1:]), generator=seeded())
        results = []
        for scheduler in pair(name, **config):
            scheduler.set_timesteps(10)
            times = scheduler.timesteps[[0, 3, 4, 8, 9]]
            results.append(scheduler.batch_step_no_noise(network(x, 500), times, x))
        assert difference(*results) < 1e-5, config
    assert langevin.DDIMParallelScheduler()._is_ode_scheduler and not langevin.DDPMParallelScheduler()._is_ode_scheduler


# ---- latent consistency and trajectory consistency -------------------------------------------------------------------


def test_lcm() -> None:
    cases = joined(
        BOUNDS, [{"prediction_type": k} for k in KINDS], [{"timestep_scaling": s} for s in (10.0, 0.01)],
        [{"set_alpha_to_one": one} for one in (True, False)],
    )  # fmt: skip
    assert failures("LCMScheduler", counted(cases, stochastic=True)) == []
    zero = joined([{"rescale_betas_zero_snr": True}], [{"prediction_type": k} for k in KINDS[1:]], BOUNDS)
    assert failures("LCMScheduler", counted(zero, stochastic=True)) == []


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(eta: float) -> None:
    cases = joined(
        BOUNDS, [{"prediction_type": k} for k in KINDS], [{"set_alpha_to_one": one} for one in (True, False)]
    )
    assert failures("TCDScheduler", counted(cases, stochastic=True, eta=eta)) == []
    zero = joined([{"rescale_betas_zero_snr": True}], [{"prediction_type": k} for k in KINDS[1:]])
    assert failures("TCDScheduler", counted(zero, stochastic=True, eta=eta)) == []


SCHEDULES = (
    {"num_inference_steps": 4, "strength": 0.5},
    {"num_inference_steps": 7, "original_inference_steps": 30},
    {"num_inference_steps": 5, "original_inference_steps": 30, "strength": 0.71},
    {"num_inference_steps": 1},
    {"timesteps": [999, 759, 499, 259]},
    {"timesteps": [999, 700, 300], "original_inference_steps": 30},
)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_schedules_of_distilled_models(name: str) -> None:
    for schedule in SCHEDULES:
        both = pair(name)
        assert runs(both, schedule, step=plain) < 2e-5, schedule
        ours, theirs = both
        assert ours.timesteps.tolist() == theirs.timesteps.tolist() and ours.timesteps.dtype == theirs.timesteps.dtype
        assert ours.num_inference_steps == theirs.num_inference_steps


def test_second_results() -> None:
    """What `step` returns beside the sample: the estimate of the data, or the sample before its noise."""
    for name, field in (("LCMScheduler", "denoised"), ("TCDScheduler", "pred_noised_sample")):
        ours, theirs = pair(name)
        results = []
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(4)
            x, seen = first_noise(), []
            for t in scheduler.timesteps:
                result = scheduler.step(network(x, t), t, x, generator=seeded(int(t)))
                x = result.prev_sample
                seen.append(getattr(result, field))
            results.append(seen)
        assert max(map(difference, *results)) < 1e-5
        t = ours.timesteps[0]
        both = ours.step(network(x, t), t, x, generator=seeded(), return_dict=False)
        assert isinstance(both, tuple) and torch.equal(both[1], ours.step(network(x, t), t, x, generator=seeded())[1])


# ---- consistency models ----------------------------------------------------------------------------------------------


def test_consistency_models() -> None:
    cases = product(
        clip_denoised=[True, False], s_noise=[1.0, 1.1], rho=[7.0, 5.0], sigma_data=[0.5, 0.8], sigma_min=[0.002, 0.01]
    )
    assert failures("CMStochasticIterativeScheduler", counted(cases, counts=(1, 4, 11, 25, 40), stochastic=True)) == []
    table = counted(product(num_train_timesteps=[201], clip_denoised=[True, False]), counts=(25, 50), stochastic=True)
    assert failures("CMStochasticIterativeScheduler", table) == []


def test_own_timesteps_of_consistency_models() -> None:
    for timesteps in ([22, 0], [39, 20, 1], [0], [30, 22, 10, 5]):
        both = pair("CMStochasticIterativeScheduler")
        assert runs(both, {"timesteps": timesteps}, step=plain) < 1e-5
        assert difference(both[0].sigmas, both[1].sigmas) < 1e-6
    ours, theirs = both
    x, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    wanted = theirs.add_noise(x, noise, theirs.timesteps[[1, 2]])
    assert difference(ours.add_noise(x, noise, ours.timesteps[[1, 2]]), wanted.float()) < 1e-6
    assert len(ours) == 40 and float(ours.init_noise_sigma) == 80.0


# ---- unCLIP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["fixed_small_log", "learned_range"])
def test_unclip(variance: str) -> None:
    def step(scheduler, k, x, generator):
        times, t = scheduler.timesteps, scheduler.timesteps[k]
        after = None if k + 1 == len(times) else times[k + 1]
        output = network(x, t, doubled=variance == "learned_range")
        return scheduler.step(output, t, x, prev_timestep=after, generator=generator).prev_sample

    cases = product(
        prediction_type=KINDS[:2],
        clip_sample=[True, False],
        clip_sample_range=[1.0, 5.0],
        num_train_timesteps=[1000, 100],
    )
    for config, steps in itertools.islice(zip(cases, itertools.cycle((4, 11, 25, 50))), 0, None, EVERY):
        both = pair("UnCLIPScheduler", variance_type=variance, **config)
        assert runs(both, {"num_inference_steps": steps}, step=step, spare=1) < 2e-5, (config, steps)
        # the weights of the peer's first and last step are rounded in float32, see the deviations
        assert runs(both, {"num_inference_steps": steps}, step=step, dtype=torch.float64) < 1e-9, (config, steps)
        assert both[0].timesteps.tolist() == both[1].timesteps.tolist()
        plan = both[0].plan(steps)
        table = planned(plan, doubled=variance == "learned_range", generator=seeded())
        generator, x = seeded(), first_noise()
        for k in range(steps):
            x = step(both[0], k, x, generator)
        assert difference(table, x) < 1e-6


def test_unclip_timesteps() -> None:
    for steps in (2, 3, 7, 25, 50, 61, 333, 1000):
        both = pair("UnCLIPScheduler")
        for scheduler in both:
            scheduler.set_timesteps(steps)
        assert both[0].timesteps.tolist() == both[1].timesteps.tolist(), steps


def test_unclip_to_any_timestep() -> None:
    """`prev_timestep` need not be the next of the schedule, nor the timestep in it."""
    x = first_noise()
    for t, after in ((900, 20), (901, 900), (500, 499), (30, 1)):
        ours, theirs = pair("UnCLIPScheduler")
        results = [s.step(network(x, t), t, x, after, generator=seeded()).prev_sample for s in (ours, theirs)]
        assert difference(*results) < 1e-5


# ---- RePaint ---------------------------------------------------------------------------------------------------------


def inpaint(scheduler, schedule):
    """Run the documented loop with jumps; return every sample."""
    scheduler.set_timesteps(**schedule)
    generator, x, seen = seeded(), first_noise(), []
    original = torch.linspace(-1, 1, first_noise().numel()).reshape(SHAPE)
    mask = (torch.rand(SHAPE, generator=seeded(3)) > 0.4).float()
    last = int(scheduler.timesteps[0]) + 1
    for t in scheduler.timesteps:
        if t < last:
            x = scheduler.step(network(x, t), t, x, original, mask, generator).prev_sample
        else:
            x = scheduler.undo_step(x, last, generator)
        seen.append(x)
        last = t
    return seen, generator.get_state()


def test_repaint_without_jumps() -> None:
    cases = product(
        eta=[0.0, 0.5, 1.0], clip_sample=[True, False], beta_schedule=["linear", "scaled_linear", "sigmoid"]
    )
    for config, steps in itertools.islice(zip(cases, itertools.cycle(COUNTS)), 0, None, EVERY):
        schedule = {"num_inference_steps": steps, "jump_n_sample": 1}
        (mine, state), (reference, other) = (inpaint(s, schedule) for s in pair("RePaintScheduler", **config))
        assert torch.equal(state, other) and max(map(difference, mine, reference)) < 2e-5, (config, steps)


def test_repaint_with_jumps() -> None:
    """Where every training step is made, so that a jump is over whole steps of the table; otherwise see deviations."""
    for config in itertools.islice(
        product(eta=[0.0, 0.7], clip_sample=[True, False], jump=[(3, 2), (5, 4)]), 0, None, EVERY
    ):
        length, samples = config.pop("jump")
        schedule = {"num_inference_steps": 25, "jump_length": length, "jump_n_sample": samples}
        both = pair("RePaintScheduler", num_train_timesteps=25, beta_end=0.2, **config)
        (mine, state), (reference, other) = (inpaint(s, schedule) for s in both)
        assert both[0].timesteps.tolist() == both[1].timesteps.tolist()
        assert torch.equal(state, other) and max(map(difference, mine, reference)) < 2e-5, config


def test_repaint_timesteps() -> None:
    for steps, length, samples in ((12, 3, 2), (7, 3, 3), (3, 10, 10), (50, 10, 10), (250, 10, 3), (41, 7, 5)):
        theirs = peer("RePaintScheduler")()
        theirs.set_timesteps(steps, jump_length=length, jump_n_sample=samples)
        stride = 1000 // steps
        assert [stride * k for k in jumps(steps, length, samples)] == theirs.timesteps.tolist()
        ours = langevin.RePaintScheduler()
        ours.set_timesteps(steps, length, samples)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist() and ours.num_inference_steps == steps


def test_compare_is_strict() -> None:
    """The comparison sees a changed option."""
    ours = compare("LCMScheduler", 4, {}, stochastic=True)
    assert max(ours.values()) < 1e-5
    scheduler, reference = langevin.LCMScheduler(timestep_scaling=0.001), peer("LCMScheduler")()
    assert runs((scheduler, reference), {"num_inference_steps": 4}, step=plain) > 1e-4
