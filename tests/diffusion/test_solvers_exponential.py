"""Exponential integrators: moments against quadrature, closed forms, observed orders, exact noise."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import langevin
from langevin.core.errors import ConfigError
from langevin.diffusion import Plan, Prediction, sample
from langevin.diffusion.process import Level, flow, preserving
from langevin.diffusion.solvers import DPMMultistep, DPMSinglestep, FirstOrder, PseudoNumerical, SASolver, UniPC
from langevin.diffusion.solvers.dpm_singlestep import places
from langevin.diffusion.solvers.exponential import exponential, moments, weights
from tests.diffusion.test_solvers import distance, gaussian_error
from tests.schedulers.oracle import STABLE


@pytest.mark.parametrize("z", [-12.0, -1.5, -0.3, -1e-4, 1e-6, 0.02, 0.99, 1.01, 5.0, 30.0])
def test_moments_are_the_integrals(z: float) -> None:
    nodes, factors = np.polynomial.legendre.leggauss(60)
    s, factors = (nodes + 1) / 2, factors / 2
    for k, value in enumerate(moments(4, z)):
        wanted = float((factors * z * np.exp(-z * (1 - s)) * s**k).sum())
        assert math.isclose(value, wanted, rel_tol=1e-10, abs_tol=1e-14)


def test_moments_at_the_ends() -> None:
    assert moments(3, 0.0) == [0.0, 0.0, 0.0]
    assert moments(2, math.inf) == [1.0, 1.0]


def test_weights_integrate_polynomials() -> None:
    at = (0.0, -0.7, -1.9, 1.0)
    values = moments(4, 0.8)
    found = weights(at, values)
    for k in range(4):
        assert math.isclose(sum(w * s**k for w, s in zip(found, at, strict=True)), values[k], rel_tol=1e-10)


def test_constant_predictions_are_integrated_exactly() -> None:
    """For constant x_0 and eps every step keeps x = alpha * x_0 + sigma * eps, with all the noise of the SDE."""
    levels = [preserving(k, r) for k, r in enumerate((9.0, 3.0, 1.0, 0.2))]
    for tau, count, wants in itertools.product((0.0, 0.4, 1.0), (1, 2, 3), ("x0", "eps")):
        if wants == "eps" and tau:
            continue
        a, b = levels[2], levels[3]
        c, found, noise = exponential(a, b, levels[2::-1][:count], wants=wants, tau=tau)
        if wants == "x0":
            assert math.isclose(c * a.alpha + sum(found), b.alpha, rel_tol=1e-9)
            assert math.isclose((c * a.sigma) ** 2 + noise**2, b.sigma**2, rel_tol=1e-9)
        else:
            assert math.isclose(c * a.alpha, b.alpha, rel_tol=1e-9)
            assert math.isclose(c * a.sigma + sum(found), b.sigma, rel_tol=1e-9)


class Silent:
    """A solver whose rows draw no noise, for strengths of 0."""

    def __init__(self, solver) -> None:
        self.solver, self.wants = solver, solver.wants

    def rows(self, grid, begin: int = 0):
        return tuple(replace(row, noise=None) for row in self.solver.rows(grid, begin))


def quiet(t: float) -> float:
    return 0.0


def sa(predictor: int, corrector: int, wants: str) -> SASolver:
    return SASolver(predictor, corrector, wants, quiet, lower_order_final=False)


def unipc(order: int, **options) -> UniPC:
    return UniPC(order, lower_order_final=False, **options)


def single(order: int, algorithm: str, *, midpoint: bool) -> DPMSinglestep:
    return DPMSinglestep(order, algorithm, midpoint=midpoint)


ALL = (0, *range(1, 1000))
ORDERS = [
    *[(single(o, a, midpoint=m), o) for o in (1, 2, 3) for a in ("dpmsolver", "dpmsolver++") for m in (True, False)],
    *[(DPMMultistep(o, "dpmsolver", midpoint=False, lower_order_final=False, exact_third=True), o) for o in (1, 2, 3)],
    *[(unipc(o, wants=w, variant=v), o + 1) for o in (1, 2) for w in ("x0", "eps") for v in ("bh1", "bh2")],
    *[(unipc(2, wants=w, uncorrected=ALL), 2) for w in ("x0", "eps")],
    *[(unipc(3, wants=w, uncorrected=ALL), 3) for w in ("x0", "eps")],
    *[(sa(p, 0, w), p) for p in (1, 2, 3) for w in ("x0", "eps")],
    *[(sa(p, p + 1, w), p + 1) for p in (1, 2) for w in ("x0", "eps")],
]


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_observed_order(solver, order: int) -> None:
    """The error falls by 2^order when the steps are doubled; a corrector adds one order to its predictor.

    Of third order it may fall faster, where the errors of the first steps and of the others have opposite signs.
    """
    coarse, fine = gaussian_error(Silent(solver), 60), gaussian_error(Silent(solver), 120)
    observed = math.log2(coarse / fine)
    assert order - 0.3 < observed < order + 0.6 + 3 * (order == 3)


def test_a_corrector_lowers_the_error() -> None:
    for order in (1, 2, 3):
        assert 2 * gaussian_error(unipc(order), 40) < gaussian_error(unipc(order, uncorrected=ALL), 40)


GRID = tuple(preserving(900 - 100 * k, r) for k, r in enumerate((20.0, 7.0, 3.0, 1.2, 0.5, 0.2, 0.05)))


def same_rows(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        size = max(len(a.outputs), len(b.outputs))
        padded = [(*r.outputs, *[0.0] * (size - len(r.outputs))) for r in (a, b)]
        assert np.allclose([a.sample, *padded[0]], [b.sample, *padded[1]], rtol=1e-9, atol=1e-12)


def test_relations_between_solvers() -> None:
    """UniP-2 with B_2 is DPM-Solver++ 2M; SA-Solver without noise and corrector is the exact multistep method."""
    plain = DPMMultistep(2, "dpmsolver++", lower_order_final=False)
    same_rows(unipc(2, uncorrected=ALL).rows(GRID), plain.rows(GRID))
    deis = DPMMultistep(3, "dpmsolver", midpoint=False, exact_third=True, lower_order_final=False)
    same_rows(sa(3, 0, "eps").rows(GRID), deis.rows(GRID))
    same_rows(unipc(2, variant="bh1", uncorrected=ALL).rows(GRID), sa(2, 0, "x0").rows(GRID))
    same_rows(unipc(2, variant="bh1").rows(GRID), unipc(2, variant="bh1", predictor=sa_free()).rows(GRID))
    same_rows(DPMSinglestep(1).rows(GRID), DPMMultistep(1).rows(GRID))
    full = SASolver(1, 0, "x0", lambda t: 1.0)
    for a, b in zip(full.rows(GRID), DPMMultistep(1, "sde-dpmsolver++").rows(GRID), strict=True):
        assert np.allclose([a.sample, *a.outputs, a.noise], [b.sample, *b.outputs, b.noise], rtol=1e-9)


def sa_free():
    """Return UniP-2 with B_1 as a solver of its own."""
    return unipc(2, variant="bh1", uncorrected=ALL)


def test_deis_closed_form() -> None:
    """Order 2 in log rho: the integral of a line through two predictions (2204.13902, section 3.3)."""
    solver = DPMMultistep(2, "dpmsolver", midpoint=False, exact_third=True, lower_order_final=False)
    before, a, b = GRID[1:4]
    rho = [level.ratio for level in (before, a, b)]

    def primitive(t: float, b: float, c: float) -> float:
        """Integral of log(t / c) / log(b / c)."""
        return t * (math.log(t) - 1 - math.log(c)) / (math.log(b) - math.log(c))

    row = solver.rows(GRID)[2]
    newest = primitive(rho[2], rho[1], rho[0]) - primitive(rho[1], rho[1], rho[0])
    older = primitive(rho[2], rho[0], rho[1]) - primitive(rho[1], rho[0], rho[1])
    assert np.allclose(row.outputs, [b.alpha * newest, b.alpha * older], rtol=1e-9)
    assert math.isclose(row.sample, b.alpha / a.alpha)


def test_places_of_calls_in_steps() -> None:
    assert places(9, 3, lower_order_final=False, clean=False) == (1, 2, 3) * 3
    assert places(9, 3, lower_order_final=True, clean=False) == (1, 2, 3, 1, 2, 3, 1, 2, 1)
    assert places(8, 3, lower_order_final=False, clean=True) == (1, 2, 3, 1, 2, 3, 1, 1)
    assert places(2, 3, lower_order_final=False, clean=False) == (1, 2)
    for count, order, lower, clean in itertools.product(range(1, 40), (1, 2, 3), (True, False), (True, False)):
        found = places(count, order, lower_order_final=lower, clean=clean)
        assert len(found) == count and found[0] == 1 and max(found) <= order
        assert all(b in (1, a + 1) for a, b in itertools.pairwise(found))
        assert not clean or found[-1] == 1


NAMES = {
    "DPMSolverSinglestepScheduler": [
        {"solver_order": o, "solver_type": s} for o in (2, 3) for s in ("midpoint", "heun")
    ],
    "DEISMultistepScheduler": [{"solver_order": 3, "use_karras_sigmas": True}, {"use_exponential_sigmas": True}],
    "UniPCMultistepScheduler": [
        {"timestep_spacing": s, "solver_order": o, "solver_type": b}
        for s, o, b in (("leading", 3, "bh1"), ("trailing", 2, "bh2"), ("linspace", 3, "bh2"))
    ] + [{"use_karras_sigmas": True, "predict_x0": False}, {"lower_order_final": False, "solver_order": 3}],
    "SASolverScheduler": [{"timestep_spacing": s, "predictor_order": 3} for s in ("leading", "trailing")],
}  # fmt: skip


def exact_end(plan: Plan, generator: torch.Generator) -> float:
    """Return how far a deterministic run with the exact noise ends from alpha * x_0 + sigma * eps at its last level."""
    data, noise = torch.full((1, 1, 2, 2), 0.3).double(), torch.randn(1, 1, 2, 2, generator=generator).double()
    end = plan.grid[-1]

    def exact(x, step):
        level, kind = step.level, plan.prediction.kind
        return {"epsilon": noise, "flow_prediction": noise - data}.get(kind, level.alpha * noise - level.sigma * data)

    x = sample(exact, plan.start(noise, data), plan)
    return float((x - end.alpha * data - end.sigma * noise).abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_exact_noise_gives_the_data(name: str) -> None:
    """From every start; runs that end above sigma = 0 end where the noise of that level belongs."""
    for config in NAMES[name]:
        quieted = {"tau_func": quiet} if name.startswith("SA") else {}
        scheduler = getattr(langevin, name)(**STABLE, **config, **quieted)
        for steps in (1, 2, 3, 7, 50):
            plan = scheduler.plan(steps)
            if name.startswith("SA"):
                plan = replace(plan, solver=Silent(plan.solver))
            for first in range(len(plan.steps)) if steps < 10 else (0, 17, 49):
                assert exact_end(plan.part(first), torch.Generator().manual_seed(5)) < 1e-9, (config, steps, first)


def test_stochastic_runs_end_at_the_data() -> None:
    for tau in (None, lambda t: 1.0):
        plan = langevin.SASolverScheduler(**STABLE, use_flow_sigmas=True, tau_func=tau).plan(7)
        assert plan.grid[-1].sigma == 0 and distance(plan) < 1e-9
    sde = langevin.DPMSolverSinglestepScheduler(**STABLE, solver_order=3, algorithm_type="sde-dpmsolver++")
    assert distance(sde.plan(10)) < 1e-9


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}, {"flow": True}])
def test_inversion_turns_the_run_round(options: dict) -> None:
    """The levels ascend from the first training step to the noisiest; exact noise puts the data there."""
    flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if options.pop("flow", False) else {}
    config = {**STABLE, **options, **flows}
    down = langevin.DPMSolverMultistepScheduler(**config).plan(10)
    plan = langevin.DPMSolverMultistepInverseScheduler(**config).plan(10)
    ratios = [level.ratio for level in plan.grid]
    assert ratios == sorted(ratios) and len(set(ratios)) == 11
    assert math.isclose(ratios[-1], down.grid[0].ratio, rel_tol=1e-9)
    assert exact_end(plan, torch.Generator().manual_seed(5)) < 1e-9


def test_pure_noise_and_clean_data_have_no_infinite_coefficients() -> None:
    grid = (Level(999, 0.0, 1.0), *(flow(k, s) for k, s in ((700, 0.7), (400, 0.4), (100, 0.1))), flow(-1, 0.0))
    for solver in (unipc(3), unipc(3, variant="bh1"), sa(3, 4, "x0"), DPMSinglestep(3), DPMMultistep(3)):
        for row in solver.rows(grid):
            assert np.isfinite([row.sample, row.saved, *row.outputs]).all()
        plan = Plan(grid, Silent(solver), Prediction("flow_prediction"))
        assert exact_end(plan, torch.Generator().manual_seed(5)) < 1e-9


def test_other_predictors_for_unipc() -> None:
    """A DDIM predictor with UniPC's corrector is UniPC-1; unfit predictors are refused."""
    for predictor in (FirstOrder(), FirstOrder(split=True)):
        same_rows(unipc(1, predictor=predictor).rows(GRID), unipc(1).rows(GRID))
    for unfit in (FirstOrder(eta=1.0), PseudoNumerical(), DPMSinglestep(2), DPMMultistep(2, "dpmsolver")):
        with pytest.raises(ConfigError, match="cannot predict"):
            unipc(2, predictor=unfit).rows(GRID)
    ddim = langevin.DDIMScheduler(clip_sample=False)
    scheduler = langevin.UniPCMultistepScheduler(**STABLE, solver_p=ddim, timestep_spacing="trailing")
    assert exact_end(scheduler.plan(6), torch.Generator().manual_seed(5)) < 1e-9
    assert "solver_p" not in scheduler.config


def test_a_predictor_that_is_not_exact_is_refused() -> None:
    class Longer(FirstOrder):
        def rows(self, grid, begin=0):
            return tuple(replace(row, sample=1.01 * row.sample) for row in super().rows(grid, begin))

    grid = langevin.DDIMScheduler(**STABLE).plan(4).grid
    assert len(UniPC(predictor=FirstOrder()).rows(grid)) == 4
    with pytest.raises(ConfigError, match="Longer is not exact"):
        UniPC(predictor=Longer()).rows(grid)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_no_more_is_remembered_than_a_step_combines(order: int) -> None:
    grid = langevin.DPMSolverMultistepScheduler(**STABLE).plan(12).grid
    for solver in (DPMMultistep(order), DPMSinglestep(order), UniPC(order), SASolver(order, order)):
        rows = solver.rows(grid)
        assert max(len(row.keep) for row in rows) == max(len(row.outputs) for row in rows) - 1, solver


@pytest.mark.parametrize("wants", ["x0", "eps"])
def test_a_step_to_clean_data_adds_no_noise(wants: str) -> None:
    start, before = preserving(500, 1.7), preserving(700, 4.0)
    for tau in (0.0, 1.0):
        k, outputs, noise = exponential(start, preserving(-1, 0.0), [start, before], wants=wants, tau=tau)
        assert noise == 0.0 and outputs[1:] == (0.0,)
        data, eps = 0.3, -1.1
        x = start.alpha * data + start.sigma * eps
        assert math.isclose(k * x + outputs[0] * (data if wants == "x0" else eps), data, rel_tol=1e-12)
