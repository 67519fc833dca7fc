"""The solvers in log signal-to-noise ratio and the preconditioned schedulers against the peer, over their options."""

from __future__ import annotations

import importlib
import itertools
import sys
import types

import pytest
import torch

import langevin
from tests.schedulers.oracle import (
    KINDS,
    SPACINGS,
    STABLE,
    counted,
    difference,
    failures,
    network,
    pair,
    peer,
    planned,
    product,
    protocol,
    rounding,
    seeded,
    timeless,
)

pytestmark = pytest.mark.parity
SINGLE, DEIS = "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"
UNIPC, SA = "UniPCMultistepScheduler", "SASolverScheduler"
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
KARRAS = {"use_karras_sigmas": True, **STABLE}
ROUNDED = {"model": timeless, "labels": 1.1 / 998}
"""Exponential and beta levels: timesteps differ by one on purpose, so the network does not look at them."""


def bounded(spacings=SPACINGS):
    """Return configurations with thresholds and offsets."""
    return product(
        thresholding=[True], sample_max_value=[2.0], prediction_type=KINDS, timestep_spacing=spacings,
        steps_offset=[0, 1],
    )  # fmt: skip


def levels(**options):
    """Return pairs of (configurations on a sigma schedule, options of `failures`)."""
    yield product(use_karras_sigmas=[True], prediction_type=KINDS, **options), {}
    for name in ("use_exponential_sigmas", "use_beta_sigmas"):
        yield product(**{name: [True]}, prediction_type=KINDS, **options), ROUNDED


def check_levels(name: str, *, stochastic: bool = False, **options) -> None:
    for configs, run in levels(**options):
        run = dict(run)
        labels, model = run.pop("labels", 1e-6), run.pop("model", network)
        cases = counted((c | STABLE for c in configs), stochastic=stochastic, model=model)
        turns = ((min(n, 25), c, r) for n, c, r in cases)
        assert failures(name, turns, labels=labels, limit=5e-5) == []


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch):
    """The peer's levels in float64: in float32 its integrals of polynomials lose four digits."""
    for theirs in (peer(SA), peer(DEIS)):
        original = theirs.set_timesteps

        def set_timesteps(self, *args, original=original, **kwargs):
            original(self, *args, **kwargs)
            self.sigmas = self.sigmas.double()

        monkeypatch.setattr(theirs, "set_timesteps", set_timesteps)


# ---- singlestep DPM-Solver -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"])
def test_singlestep(algorithm: str) -> None:
    def cases():
        for config in product(
            solver_order=[1, 2, 3], solver_type=["midpoint", "heun"], lower_order_final=[True, False],
            final_sigmas_type=["zero", "sigma_min"], prediction_type=[*KINDS, "flow_prediction"],
        ):  # fmt: skip
            if not algorithm.endswith("++") and "zero" in config.values():
                continue  # both reject
            if not algorithm.endswith("++") and "flow_prediction" in config.values():
                continue  # rejected by the peer
            if algorithm.startswith("sde") and config["solver_order"] == 3 and config["solver_type"] == "heun":
                continue  # a deviation
            yield config | (FLOW if "flow_prediction" in config.values() else STABLE) | {"algorithm_type": algorithm}

    assert failures(SINGLE, counted(cases(), stochastic=True), limit=5e-5) == []


def test_singlestep_levels_bounds_and_learned_variance() -> None:
    check_levels(SINGLE, solver_order=[2, 3], lower_order_final=[True], stochastic=True)
    few = product(thresholding=[True], sample_max_value=[2.0], prediction_type=KINDS, solver_order=[2, 3])
    assert failures(SINGLE, counted((c | STABLE for c in few), stochastic=True), limit=5e-5) == []
    learned = product(variance_type=["learned", "learned_range"], solver_order=[1, 2])
    assert failures(SINGLE, counted(learned, doubled=True)) == []
    cosine = product(beta_schedule=["squaredcos_cap_v2"], lambda_min_clipped=[-5.1], prediction_type=KINDS)
    assert failures(SINGLE, counted(cosine), limit=5e-5) == []


@pytest.mark.parametrize("first", [1, 2, 3, 4, 7])
def test_singlestep_from_inside_a_step(first: int) -> None:
    """The rest of a step that is entered half way is a step of lower order, as in the peer."""
    ours, theirs = pair(SINGLE, solver_order=3, **STABLE)
    ends = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(11)
        scheduler.set_begin_index(first)
        x = torch.randn(1, 3, 4, 4, generator=seeded())
        for t in scheduler.timesteps[first:]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        ends.append(x)
    assert difference(*ends) < 2e-5


# ---- inversion -------------------------------------------------------------------------------------------------------


def test_inversion() -> None:
    """On linspace; other levels differ on purpose."""
    cases = product(
        solver_order=[1, 2, 3], solver_type=["midpoint", "heun"], algorithm_type=["dpmsolver", "dpmsolver++"],
        lower_order_final=[True, False], euler_at_final=[False, True], prediction_type=KINDS,
    )  # fmt: skip
    assert failures("DPMSolverMultistepInverseScheduler", counted(c | STABLE for c in cases), limit=5e-5) == []


# ---- DEIS ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("precise")
def test_deis() -> None:
    cases = product(
        solver_order=[1, 2, 3], lower_order_final=[True, False], timestep_spacing=SPACINGS, steps_offset=[0, 1],
        prediction_type=KINDS,
    )  # fmt: skip
    assert failures(DEIS, counted(c | STABLE for c in cases), limit=5e-5) == []
    assert failures(DEIS, counted(c | STABLE for c in bounded()), limit=5e-5) == []


def up_to_the_last(name: str, steps: int, config: dict, *, stochastic: bool = False) -> float:
    """Return the difference of two runs before their last step, which goes on in ours and stays in the peer."""
    ours, theirs = pair(name, **config)
    runs = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
        draw = {"generator": seeded()} if stochastic else {}
        runs.append(protocol(scheduler, **draw))
    return max(map(difference, runs[0][:-1], runs[1][:-1]))


def test_deis_and_sa_solver_up_to_the_last_step() -> None:
    for order, steps in itertools.product((1, 2, 3), (4, 25)):
        # 1 - sigma of the first level, 0.9997, has four digits in the peer's float32
        gaps = rounding(DEIS, steps, {**FLOW, "solver_order": order}, stop=-1)
        assert gaps["ours"] < 2e-5 and gaps["peer in float64"] < 1e-9
        assert up_to_the_last(DEIS, steps, {**KARRAS, "solver_order": order}) < 2e-5
    for steps in (4, 25):
        assert up_to_the_last(SA, steps, FLOW, stochastic=True) < 2e-5


# ---- UniPC -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc(predict_x0: bool) -> None:
    def cases():
        for config in product(
            solver_order=[1, 2, 3], solver_type=["bh1", "bh2"], lower_order_final=[True, False],
            disable_corrector=[[], [0, 2]], final_sigmas_type=["zero", "sigma_min"], timestep_spacing=SPACINGS,
            prediction_type=KINDS, predict_x0=[predict_x0],
        ):  # fmt: skip
            if config["final_sigmas_type"] == "zero":
                if config["solver_type"] == "bh1" or not predict_x0:
                    continue  # NaN in the peer
                if config["solver_order"] > 1 and not config["lower_order_final"]:
                    continue  # NaN in the peer
            yield config | STABLE

    assert failures(UNIPC, counted(cases()), limit=5e-5) == []


def test_unipc_levels_bounds_and_zero_snr() -> None:
    check_levels(UNIPC, solver_order=[2, 3])
    ranged = product(use_karras_sigmas=[True], sigma_max=[5.0, None], sigma_min=[0.1, None], solver_order=[1, 2, 3])
    few = ((min(n, 25), c, r) for n, c, r in counted(c | STABLE for c in ranged))
    assert failures(UNIPC, few, limit=5e-5) == []
    assert failures(UNIPC, counted(c | STABLE for c in bounded()), limit=5e-5) == []
    zero = product(rescale_betas_zero_snr=[True], prediction_type=KINDS[1:], timestep_spacing=SPACINGS)
    assert failures(UNIPC, counted(zero), limit=5e-5) == []


def test_unipc_flow() -> None:
    flow = product(solver_order=[1, 2, 3], flow_shift=[1.0, 3.0], shift_terminal=[None, 0.1], predict_x0=[True])
    assert failures(UNIPC, counted(FLOW | c for c in flow), limit=5e-5) == []
    karras = product(use_karras_sigmas=[True], solver_order=[1, 2, 3])
    assert failures(UNIPC, counted(FLOW | c for c in karras), limit=5e-5) == []


@pytest.mark.parametrize("options", [{"mu": 1.2}, {"sigmas": [1.0, 0.8, 0.5, 0.3, 0.1]}])
def test_unipc_flow_schedules(options: dict) -> None:
    config = FLOW | ({"use_dynamic_shifting": True} if "mu" in options else {})
    ours, theirs = pair(UNIPC, **config)
    count = 7 if "mu" in options else None
    ours.set_timesteps(count, **options)
    theirs.set_timesteps(count, **{k: v if k == "mu" else torch.tensor(v).numpy() for k, v in options.items()})
    assert difference(ours.sigmas, theirs.sigmas) < 1e-6
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert max(map(difference, protocol(ours), protocol(theirs))) < 2e-5
    assert ours.plan(count, **options).grid == ours.plan().grid


# ---- SA-Solver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["data_prediction", "noise_prediction"])
@pytest.mark.usefixtures("precise")
def test_sa_solver(algorithm: str) -> None:
    cases = product(
        predictor_order=[1, 2, 3, 4], corrector_order=[1, 2, 3, 4], lower_order_final=[True, False],
        timestep_spacing=SPACINGS, prediction_type=KINDS, algorithm_type=[algorithm],
    )  # fmt: skip
    assert failures(SA, counted((c | STABLE for c in cases), stochastic=True), limit=5e-5) == []


@pytest.mark.usefixtures("precise")
def test_sa_solver_levels_bounds_and_strength() -> None:
    check_levels(SA, predictor_order=[2, 3], stochastic=True)
    assert failures(SA, counted((c | STABLE for c in bounded()), stochastic=True), limit=5e-5) == []
    cosine = product(beta_schedule=["squaredcos_cap_v2"], lambda_min_clipped=[-5.1], timestep_spacing=SPACINGS)
    assert failures(SA, counted(cosine, stochastic=True), limit=5e-5) == []
    strong = product(tau_func=[lambda t: 0.7 if t > 300 else 0.0, lambda t: 1.0], predictor_order=[2, 3])
    assert failures(SA, counted((c | STABLE for c in strong), stochastic=True), limit=5e-5) == []


# ---- preconditioned --------------------------------------------------------------------------------------------------

EDM = product(
    sigma_schedule=["karras", "exponential"], prediction_type=["epsilon", "v_prediction"],
    final_sigmas_type=["zero", "sigma_min"], sigma_data=[0.5, 1.0],
)  # fmt: skip
EDM_CASES = tuple(EDM)


def test_edm_euler() -> None:
    assert failures("EDMEulerScheduler", counted(EDM_CASES)) == []
    churn = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.01, "stochastic": True}
    assert failures("EDMEulerScheduler", counted(EDM_CASES, **churn)) == []


def test_edm_dpm_solver() -> None:
    def cases():
        solvers = product(
            solver_order=[1, 2, 3], solver_type=["midpoint", "heun"], algorithm_type=["dpmsolver++", "sde-dpmsolver++"],
            lower_order_final=[True, False], euler_at_final=[False, True], thresholding=[False, True],
        )  # fmt: skip
        for config, edm in zip(solvers, itertools.cycle(EDM_CASES[::3]), strict=False):
            if config["solver_order"] == 3 and config["algorithm_type"].startswith("sde"):
                continue  # a deviation
            simple = config["solver_order"] < 3 and config["solver_type"] == "midpoint"
            if edm["final_sigmas_type"] == "sigma_min" and not simple and not config["euler_at_final"]:
                continue  # the last step has no length: NaN in the peer
            yield config | edm | {"sample_max_value": 2.0}

    assert failures("EDMDPMSolverMultistepScheduler", counted(cases(), stochastic=True), limit=5e-5) == []


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_preconditioning_and_noising(name: str) -> None:
    for kind in ("epsilon", "v_prediction"):
        ours, theirs = pair(name, prediction_type=kind)
        x, noise = (torch.randn(2, 3, 4, 4, generator=seeded(k)) for k in (1, 2))
        sigma = torch.tensor([0.3, 20.0]).reshape(2, 1, 1, 1)
        assert difference(ours.precondition_inputs(x, sigma), theirs.precondition_inputs(x, sigma)) < 1e-6
        assert difference(ours.precondition_noise(sigma), theirs.precondition_noise(sigma)) < 1e-6
        mine, reference = (s.precondition_outputs(x, noise, sigma) for s in (ours, theirs))
        assert difference(mine, reference) < 1e-6
        assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma))
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(9)
        t = theirs.timesteps[[2, 6]]
        assert difference(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t)) < 1e-6


def test_edm_euler_with_a_given_estimate() -> None:
    ours, theirs = pair("EDMEulerScheduler")
    x, data = (torch.randn(1, 3, 4, 4, generator=seeded(k)) for k in (1, 2))
    ends = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(5)
        ends.append(scheduler.step(data, scheduler.timesteps[0], 80 * x, pred_original_sample=data).prev_sample)
    assert difference(*ends) < 1e-6


def cosine_peer(monkeypatch: pytest.MonkeyPatch):
    """Return the peer's class, which asks for a package that it only needs for its own noise."""
    if "torchsde" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    peer("EDMEulerScheduler")
    module = importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
    return module.CosineDPMSolverMultistepScheduler


def test_cosine_dpm_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the increments of its Brownian motion drawn from the generator, as ours are."""
    their_class = cosine_peer(monkeypatch)
    cases = product(
        sigma_schedule=["exponential", "karras"], prediction_type=["v_prediction", "epsilon"],
        solver_order=[1, 2], solver_type=["midpoint", "heun"], final_sigmas_type=["zero", "sigma_min"],
    )  # fmt: skip
    for config, steps in itertools.islice(zip(cases, itertools.cycle((4, 11, 25)), strict=False), 0, None, 3):
        ours, theirs = langevin.CosineDPMSolverMultistepScheduler(**config), their_class(**config)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps)
        assert difference(ours.sigmas, theirs.sigmas) < 1e-6
        assert difference(ours.timesteps, theirs.timesteps) < 1e-6
        x, stream = torch.randn(1, 3, 4, 4, generator=seeded(3)), seeded()
        theirs.noise_sampler = lambda a, b, stream=stream: torch.randn(1, 3, 4, 4, generator=stream)
        mine = protocol(ours, x=500 * x, generator=seeded())
        reference = protocol(theirs, x=500 * x)
        stop = (
            -1 if config["final_sigmas_type"] == "sigma_min" else None
        )  # the last step has no length: NaN in the peer
        assert max(map(difference, mine[:stop], reference[:stop])) < 2e-5
        assert difference(planned(ours.plan(steps), x=500 * x, generator=seeded()), mine[-1]) < 1e-6
