"""Deliberate differences of the solvers in log signal-to-noise ratio and of the preconditioned schedulers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from langevin.diffusion import sample
from tests.schedulers.oracle import STABLE, difference, first_noise, network, pair, peer, protocol, seeded, timeless
from tests.schedulers.test_deviations import both, recovered

pytestmark = pytest.mark.parity
SINGLE, DEIS = "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"
UNIPC, SA, UP = "UniPCMultistepScheduler", "SASolverScheduler", "DPMSolverMultistepInverseScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def straight(scheduler) -> float:
    """Return how far a flow run with the exact velocity ends from the data."""
    data, noise = torch.full((1, 3, 4, 4), 0.3), torch.randn(1, 3, 4, 4, generator=seeded())
    x = scheduler.add_noise(data, noise, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        x = scheduler.step(noise - data, t, x).prev_sample
    return float((x - data).abs().max())


@pytest.mark.parametrize(
    "config",
    [{"solver_type": "bh1"}, {"lower_order_final": False}, {"predict_x0": False}],
)
def test_unipc_goes_to_clean_data(config: dict) -> None:
    """The step to sigma = 0 is infinitely long in lambda; the peer multiplies that by zero."""
    ours, theirs = both(UNIPC, 6, **STABLE, **config)
    assert not torch.isfinite(protocol(theirs)[-1]).all()
    assert torch.isfinite(protocol(ours)[-1]).all()
    assert recovered(both(UNIPC, 6, **STABLE, **config)[0]) < 1e-5


def test_an_edit_between_steps_is_kept_by_correctors() -> None:
    """The peer's corrector starts again from the sample before the edit, which is lost; ours adds to the sample."""
    for name, config in ((UNIPC, {}), (SA, {"tau_func": lambda t: 0.0})):
        ours, theirs = both(name, 8, **STABLE, **config)
        moved = []
        for scheduler in (ours, theirs):
            ends = []
            for edit in (0.0, 1.0):
                scheduler.set_timesteps(8)
                x = first_noise()
                for k, t in enumerate(scheduler.timesteps):
                    x = scheduler.step(0.1 * first_noise(), t, x + edit * (k == 4)).prev_sample
                ends.append(x)
            moved.append(float((ends[1] - ends[0]).abs().max()))
        assert 0.5 * moved[0] > moved[1] and moved[0] > 0.5, name


def test_another_predictor_for_unipc_uses_its_levels() -> None:
    """The peer lets `solver_p` choose its own levels: with DDIM's spacing the two work at different ones."""
    ours, theirs = (
        scheduler(**STABLE, solver_p=inner(**STABLE, clip_sample=False))
        for scheduler, inner in (
            (langevin.UniPCMultistepScheduler, langevin.DDIMScheduler),
            (peer(UNIPC), peer("DDIMScheduler")),
        )
    )
    ours.set_timesteps(8)
    theirs.set_timesteps(8)
    assert recovered(ours) < 1e-5
    with pytest.raises((IndexError, AssertionError)):
        assert recovered(theirs) < 1e-2
    with pytest.raises(ConfigError, match="cannot predict"):
        langevin.UniPCMultistepScheduler(solver_p=langevin.DDPMScheduler()).set_timesteps(5)


def test_unipc_flow_run_does_not_stop_at_its_last_call() -> None:
    """With final_sigmas_type="sigma_min" the peer's last step goes from a level to itself."""
    ours, theirs = both(UNIPC, 4, **FLOW, final_sigmas_type="sigma_min")
    assert float(theirs.sigmas[-1]) == float(theirs.sigmas[-2]) > 0.2
    assert float(ours.sigmas[-1]) == pytest.approx(math.sqrt(1 / ours.alphas_cumprod[0] - 1), rel=1e-4)
    assert difference(ours.sigmas[:-1], theirs.sigmas[:-1]) < 1e-6


@pytest.mark.parametrize("name", [DEIS, SA])
def test_flow_runs_end_at_the_data(name: str) -> None:
    """The peer stops at the level of the last call: at four steps a quarter of the picture is noise."""
    ours, theirs = both(name, 4, **FLOW, **({"tau_func": lambda t: 0.0} if name == SA else {}))
    assert float(theirs.sigmas[-1]) == float(theirs.sigmas[-2]) > 0.2 and float(ours.sigmas[-1]) == 0
    assert straight(ours) < 1e-4 < 0.2 < straight(theirs)


def test_deis_last_step_on_sigma_schedules() -> None:
    """The peer's last call changes nothing, since the lowest level comes twice; ours removes the rest of the noise."""
    ours, theirs = both(DEIS, 6, **STABLE, use_karras_sigmas=True)
    reference = protocol(theirs)
    assert difference(reference[-1], reference[-2]) < 1e-6
    assert recovered(ours) < 1e-5


def test_sigma_schedules_on_flow_levels() -> None:
    """Exponential and beta levels are sigma / alpha; the peer takes them for flow levels, far above 1."""
    for name, option in ((UNIPC, "use_exponential_sigmas"), ("DPMSolverMultistepScheduler", "use_karras_sigmas")):
        ours, theirs = both(name, 6, **STABLE, **FLOW, **{option: True})
        assert float(theirs.sigmas[0]) > 10 and 0.9 < float(ours.sigmas[0]) < 1
        assert straight(ours) < 1e-4


def test_third_order_singlestep_sde() -> None:
    """A quadratic must be integrated exactly; the peer's last weight has a wrong sign."""
    lam = [0.0, 0.3, 0.7, 1.1]
    config = {"solver_order": 3, "solver_type": "heun", "final_sigmas_type": "sigma_min", "prediction_type": "sample"}
    sigmas = [math.exp(-v) for v in lam]
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        plan = langevin.DPMSolverSinglestepScheduler(algorithm_type=algorithm, **config).plan(sigmas=sigmas)
        row, rate = plan.rows[2], 2.0 if algorithm.startswith("sde") else 1.0
        nodes, factors = np.polynomial.legendre.leggauss(40)
        u = (nodes + 1) / 2 * lam[3]
        exact = float((factors / 2 * lam[3] * rate * np.exp(-rate * (lam[3] - u)) * u**2).sum())
        got = sum(w * v**2 for w, v in zip(row.outputs, lam[2::-1], strict=True))
        assert math.isclose(got, plan.grid[3].alpha * exact, rel_tol=1e-9)
    config = {"solver_order": 3, "solver_type": "heun", "algorithm_type": "sde-dpmsolver++"}
    mine, reference = (protocol(s, generator=seeded()) for s in both(SINGLE, 12, **STABLE, **config))
    assert max(map(difference, mine[:2], reference[:2])) < 1e-5 < 1e-2 < difference(mine[2], reference[2])


def test_singlestep_keeps_its_configuration() -> None:
    """The peer switches `lower_order_final` on for good when a number of steps needs it once."""
    ours, theirs = both(SINGLE, 5, **STABLE, final_sigmas_type="sigma_min")
    assert ours.config.lower_order_final is False and theirs.config.lower_order_final is True
    fresh = peer(SINGLE)(**STABLE, final_sigmas_type="sigma_min")
    fresh.set_timesteps(6)
    ours.set_timesteps(6)
    assert max(map(difference, protocol(ours), protocol(fresh))) < 2e-5


@pytest.mark.parametrize(
    "options",
    [
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "leading"},
        {"use_karras_sigmas": True, **STABLE},
        {"use_exponential_sigmas": True, **STABLE},
        FLOW,
    ],
)
def test_an_inversion_visits_the_levels_of_the_run(options: dict) -> None:
    """The noise that it finds must be where sampling starts; the peer starts, ends or turns elsewhere."""
    down = langevin.DPMSolverMultistepScheduler(**options)
    ours, theirs = both(UP, 6, **options)
    down.set_timesteps(6)
    top = down.sigmas[0]
    assert float(ours.sigmas[-1]) == pytest.approx(float(top), rel=1e-6)
    assert bool((ours.sigmas.diff() > 0).all()) and len(ours.sigmas) == 7
    start = math.sqrt(1 / ours.alphas_cumprod[0] - 1)
    assert float(ours.sigmas[0]) == pytest.approx(start, rel=1e-4)
    wrong = theirs.sigmas
    ascending = len(wrong) == 7 and bool((wrong.diff() > 1e-6 * wrong[1:]).all())
    assert not ascending or abs(float(wrong[0]) - start) > 1e-3 or abs(float(wrong[-1] / top) - 1) > 1e-3


def test_noise_cannot_be_inverted() -> None:
    theirs = peer(UP)(algorithm_type="sde-dpmsolver++")
    theirs.set_timesteps(5)
    assert not torch.isfinite(protocol(theirs, generator=seeded())[-1]).all()
    with pytest.raises(ConfigError, match="inverted"):
        langevin.DPMSolverMultistepInverseScheduler(algorithm_type="sde-dpmsolver++")
    with pytest.raises(InputError, match="999 steps or fewer"):
        langevin.DPMSolverMultistepInverseScheduler(timestep_spacing="trailing").set_timesteps(1000)


@pytest.mark.parametrize("name", [DEIS, SA])
def test_integrals_of_polynomials_in_float64(name: str) -> None:
    """The peer's float32 loses four digits at order 3 and above; with its levels in float64 the two agree."""
    config = {"predictor_order": 4, "corrector_order": 4} if name == SA else {"solver_order": 3}
    config |= {**STABLE, "timestep_spacing": "leading", "steps_offset": 1, "lower_order_final": False}
    gaps = []
    for precise in (False, True):
        ours, theirs = both(name, 50, **config)
        theirs.sigmas = theirs.sigmas.double() if precise else theirs.sigmas
        draw = [{"generator": seeded()} if name == SA else {} for _ in range(2)]
        mine, reference = protocol(ours, **draw[0]), protocol(theirs, **draw[1])
        gaps.append(max(map(difference, mine, reference)))
    assert gaps[1] < 2e-5 < gaps[0]


def test_types_of_related_samplers_are_replaced() -> None:
    """A configuration carried over from DPM-Solver names its algorithm; SA-Solver of the peer refuses it."""
    source = langevin.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **STABLE).config
    with pytest.raises(NotImplementedError):
        peer(SA).from_config({**source})
    assert langevin.SASolverScheduler.from_config(source).config.algorithm_type == "data_prediction"
    assert langevin.DEISMultistepScheduler.from_config(source).config.algorithm_type == "deis"
    with pytest.raises(InputError, match="noise_prediction"):
        langevin.SASolverScheduler(algorithm_type="noise_predicton")


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_learned_variance_is_split_off_for_every_prediction(kind: str) -> None:
    """The peer splits only noise predictions, and then adds outputs of twice the channels to the sample."""
    ours, theirs = both("DPMSolverMultistepScheduler", 5, variance_type="learned_range", prediction_type=kind)
    x, t = first_noise(), ours.timesteps[0]
    output = network(x, t, doubled=True)
    with pytest.raises(RuntimeError):
        theirs.step(output, t, x)
    plain = langevin.DPMSolverMultistepScheduler(prediction_type=kind)
    plain.set_timesteps(5)
    wanted = plain.step(network(x, t), t, x).prev_sample
    assert torch.equal(ours.step(output, t, x).prev_sample, wanted)


# ---- preconditioned --------------------------------------------------------------------------------------------------


def test_edm_custom_sigmas_are_noise_levels() -> None:
    """The peer takes them for positions between its ends, or looks at their number only."""
    given = [10.0, 3.0, 1.0, 0.3, 0.0]
    ours, theirs = pair("EDMEulerScheduler")
    theirs.set_timesteps(sigmas=torch.tensor(given[:-1]))
    ours.set_timesteps(sigmas=given)
    assert ours.sigmas.tolist() == pytest.approx(given) and ours.num_inference_steps == 4
    assert not torch.allclose(theirs.sigmas[:4], torch.tensor(given[:4]), rtol=0.5)
    with pytest.raises(InputError, match="noise levels"):
        ours.set_timesteps(timesteps=[3, 1])
    with pytest.raises(InputError, match="descend"):
        ours.set_timesteps(sigmas=[1.0, 2.0])


def test_edm_training_table() -> None:
    """One entry for each training timestep; the peer's Euler has one more."""
    ours, theirs = pair("EDMEulerScheduler")
    assert len(theirs.timesteps) == 1001 and len(ours.timesteps) == len(ours) == 1000


def test_edm_reads_two_kinds_of_predictions() -> None:
    """ "sample" is accepted by the peer and fails in `step`."""
    theirs = peer("EDMDPMSolverMultistepScheduler")(prediction_type="sample")
    theirs.set_timesteps(3)
    with pytest.raises(ValueError):
        protocol(theirs)
    with pytest.raises(InputError, match="epsilon, v_prediction"):
        langevin.EDMDPMSolverMultistepScheduler(prediction_type="sample")


@pytest.mark.parametrize("config", [{"solver_order": 3}, {"solver_type": "heun"}])
def test_edm_last_step_without_length(config: dict) -> None:
    """With final_sigmas_type="sigma_min" the lowest level comes twice: 0 / 0 in the peer."""
    ours, theirs = both("EDMDPMSolverMultistepScheduler", 20, final_sigmas_type="sigma_min", **config)
    assert not torch.isfinite(protocol(theirs, model=timeless)[-1]).all()
    mine = protocol(ours, model=timeless)
    assert difference(mine[-1], mine[-2]) < 1e-6


def test_cosine_noise_comes_from_the_generator() -> None:
    """The peer seeds a tree of its own with the generator's first seed, so a second picture has the same noise."""
    scheduler, generator = langevin.CosineDPMSolverMultistepScheduler(), seeded()
    ends = []
    for _ in range(2):
        scheduler.set_timesteps(4)
        ends.append(protocol(scheduler, generator=generator, x=first_noise())[-1])
    assert difference(*ends) > 1e-3
    scheduler.set_timesteps(4)
    assert torch.equal(protocol(scheduler, generator=seeded(), x=first_noise())[-1], ends[0])
    plan = scheduler.plan(4)
    with pytest.raises(InputError, match="draws noise"):
        sample(lambda x, step: x, first_noise(), plan)
