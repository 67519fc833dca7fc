"""Two-stage, multistep and flow schedulers against the peer over their options."""

from __future__ import annotations

import importlib
import importlib.machinery
import itertools
import math
import sys
import types

import pytest
import torch

import langevin
from tests.schedulers.oracle import (
    COUNTS,
    EVERY,
    KINDS,
    SHAPE,
    SPACINGS,
    STABLE,
    counted,
    difference,
    failures,
    first_noise,
    network,
    pair,
    peer,
    planned,
    product,
    protocol,
    seeded,
    timeless,
)

pytestmark = pytest.mark.parity
LEVELS = ({}, *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")))


def tabled(kinds=KINDS, **options):
    """Return the product of predictions, spacings, offsets, betas and sigma schedules."""
    betas = ({}, STABLE)  # cosine betas end at sigma = 20291, where the peer's float32 cancels: a deviation
    for levels, beta, config in itertools.product(
        LEVELS, betas, list(product(prediction_type=kinds, timestep_spacing=SPACINGS, steps_offset=[0, 1], **options))
    ):
        yield levels | beta | config


@pytest.mark.parametrize("clip", [False, True])
def test_heun(clip: bool) -> None:
    """A plan tells the network host timesteps, `step` their float32: over four long steps that grows to 1e-5."""
    cases = tabled(clip_sample=[clip], clip_sample_range=[1.5])
    assert failures("HeunDiscreteScheduler", counted(cases), limit=1e-4, plan=2e-5) == []


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(order: int) -> None:
    """The first of four steps goes down by 150 in sigma, so one of these runs shows the float32 rounding of both."""
    cases = counted(tabled(), order=order)
    assert failures("LMSDiscreteScheduler", cases, limit=1e-4, plan=1e-4, rounded=True) == []


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_kdpm2(name: str) -> None:
    """The peer lists other sigmas, and rounds the timesteps of Karras levels, at which the network does not look.

    Its own timesteps come from float32 sigmas, hence 5e-6; a plan tells the network host numbers, hence 1e-5.
    """
    run = {"stochastic": True} if "Ancestral" in name else {}
    cases = [c for c in tabled(("epsilon", "v_prediction")) if not c.get("use_karras_sigmas")]
    assert failures(name, counted(cases, **run), limit=1e-4, labels=5e-6, plan=1e-5, apart=("sigmas",)) == []
    cases = [c for c in tabled(("epsilon", "v_prediction")) if c.get("use_karras_sigmas")]
    turns = counted(cases, model=timeless, **run)
    assert failures(name, turns, limit=1e-4, labels=0.51 / 990, apart=("sigmas",)) == []


class Path:
    """A Brownian path in sigma as increments over disjoint intervals, in the place of the peer's noise."""

    generator: torch.Generator

    def __init__(self, x, sigma_min, sigma_max, *args, **kwargs) -> None:
        self.x, self.known = x, []

    def __call__(self, sigma, after):
        """Return (W(after) - W(sigma)) / sqrt(sigma - after); the interval continues what is known from sigma on."""
        sigma, after = float(sigma), float(after)
        self.known = [part for part in self.known if math.isclose(part[0], sigma, rel_tol=1e-5)]
        begin = self.known[-1][1] if self.known else sigma
        draw = torch.randn(self.x.shape, generator=self.generator, dtype=self.x.dtype)
        self.known.append((sigma, after, draw * math.sqrt(begin - after)))
        return sum(part[2] for part in self.known) / math.sqrt(sigma - after)


@pytest.fixture
def stochastic_peer(monkeypatch: pytest.MonkeyPatch):
    """The peer's SDE scheduler without its dependency, over the noise of `Path`."""
    stub = types.ModuleType("torchsde")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchsde", None)
    peer("HeunDiscreteScheduler")
    monkeypatch.setitem(sys.modules, "torchsde", stub)
    name = "diffusers.schedulers.scheduling_dpmsolver_sde"
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", Path)
    yield module.DPMSolverSDEScheduler
    sys.modules.pop(name, None)


def test_dpm_solver_sde(stochastic_peer) -> None:
    """Equal noise, drawn as independent increments: equal trajectories."""
    cases = itertools.product(tabled(("epsilon", "v_prediction")), (1.0, 0.7, 0.0))
    for (config, strength), steps in itertools.islice(
        zip(cases, itertools.cycle(COUNTS), strict=False), 0, None, EVERY
    ):
        ours, theirs = langevin.DPMSolverSDEScheduler(**config), stochastic_peer(**config)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps)
        assert difference(ours.timesteps, theirs.timesteps) < 1e-6, config
        assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma))
        Path.generator, mine, other = seeded(), seeded(), seeded()
        options = {"s_noise": strength}
        reference = protocol(theirs, **options)
        run = protocol(ours, generator=mine, **options)
        assert max(map(difference, run, reference)) < 1e-4, (config, steps, strength)
        table = planned(type(ours)(**config).plan(steps, **options), generator=other)
        assert difference(table, run[-1]) < 1e-5
        if strength:
            assert torch.equal(mine.get_state(), Path.generator.get_state())


@pytest.mark.parametrize(
    "name",
    ["HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"],
)
def test_tables_and_noising(name: str) -> None:
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        ours, theirs = pair(name, beta_schedule=schedule)
        for table in ("betas", "alphas", "alphas_cumprod"):
            assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
        assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=2e-3)
        x, noise = first_noise(), torch.randn(SHAPE, generator=seeded(3))
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(20)
        t = theirs.timesteps[[0, 6, 16]] if scheduler.order == 2 else theirs.timesteps[[3, 15, 16]]
        t, x, noise = t[:2], x[:2], noise[:2]
        assert difference(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t)) < 1e-6
        assert difference(ours.scale_model_input(x, t[1]), theirs.scale_model_input(x, t[1])) < 1e-6
        assert type(ours).order == type(theirs).order
        assert set(type(ours)._compatibles) == set(type(theirs)._compatibles)
        y = ours.step(x, ours.timesteps[0], x, return_dict=False)
        assert len(y) == len(theirs.step(x, theirs.timesteps[0], x, return_dict=False))


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_starting_inside(name: str) -> None:
    """By timestep and by position, at the first call of a step."""
    for by in ("timestep", "position"):
        ours, theirs = pair(name, **STABLE)
        ends = []
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(10)
            first = 4 * scheduler.order
            if by == "position":
                scheduler.set_begin_index(first)
            x = first_noise()
            for t in scheduler.timesteps[first:]:
                x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
            ends.append(x)
        assert difference(*ends) < 1e-5
    if name == "HeunDiscreteScheduler":
        ours, theirs = pair(name, **STABLE)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(timesteps=[900, 600, 300, 10])
        assert max(map(difference, protocol(ours), protocol(theirs))) < 1e-5


def test_ipndm() -> None:
    """From the second step on; in the first one the peer loses what the network says of the data."""
    for steps in COUNTS:
        ours, theirs = pair("IPNDMScheduler")
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps)
        assert difference(ours.timesteps, theirs.timesteps) < 5e-6 and ours.init_noise_sigma == theirs.init_noise_sigma
        x = y = first_noise()
        for k, (t, s) in enumerate(zip(ours.timesteps, theirs.timesteps, strict=True)):
            x = ours.step(network(x, 300 * t), t, x).prev_sample
            y = theirs.step(network(y, 300 * s), s, y).prev_sample
            if k == 0:
                y = x
            assert difference(x, y) < 1e-5
        table = planned(type(ours)().plan(steps), model=lambda x, t, doubled: network(x, 300 * t))
        assert difference(table, x) < 1e-6
    betas = [0.9, 0.6, 0.3, 0.05]
    ours, theirs = pair("IPNDMScheduler", trained_betas=betas)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(3)
    assert difference(ours.timesteps, theirs.timesteps) < 1e-6
    assert max(map(difference, protocol(ours), protocol(theirs))) < 1e-5


@pytest.fixture
def flow_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the peer's flow schedulers what the common loop asks of every scheduler."""
    for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        monkeypatch.setattr(peer(name), "scale_model_input", lambda self, x, t: x, raising=False)
        monkeypatch.setattr(peer(name), "init_noise_sigma", 1.0, raising=False)


def flows():
    for config in product(shift=[1.0, 3.0, 0.7], shift_terminal=[None, 0.1], invert_sigmas=[False, True]):
        for levels in LEVELS:
            yield config | levels


def test_flow_euler(flow_peers) -> None:
    assert failures("FlowMatchEulerDiscreteScheduler", counted(flows())) == []
    drawn = [c | {"stochastic_sampling": True} for c in flows() if not c["invert_sigmas"]]
    assert failures("FlowMatchEulerDiscreteScheduler", counted(drawn, stochastic=True)) == []


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_flow_dynamic_shift(kind: str, flow_peers) -> None:
    for levels, mu, terminal in itertools.product(LEVELS, (0.5, 1.15), (None, 0.02)):
        config = {"use_dynamic_shifting": True, "time_shift_type": kind, "shift": 3.0, "shift_terminal": terminal}
        ours, theirs = pair("FlowMatchEulerDiscreteScheduler", **config, **levels)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(11, mu=mu)
        assert difference(ours.sigmas, theirs.sigmas) < 1e-6
        assert difference(ours.timesteps, theirs.timesteps) < 1e-6
        assert max(map(difference, protocol(ours), protocol(theirs))) < 1e-5
        assert ours.plan(11, mu=mu).grid == ours.plan().grid


def test_flow_heun(flow_peers) -> None:
    assert failures("FlowMatchHeunDiscreteScheduler", counted(product(shift=[1.0, 3.0, 0.7, 6.0])), plan=1e-5) == []


def test_flow_own_sigmas_training_table_and_noising(flow_peers) -> None:
    for name, config in (
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ):
        ours, theirs = pair(name, **config)
        if name.startswith("FlowMatchEuler"):
            assert difference(ours.timesteps, theirs.timesteps) < 1e-6
            assert difference(ours.sigmas[:1000], theirs.sigmas) < 1e-6
        x, noise = first_noise(), torch.randn(SHAPE, generator=seeded(3))
        if name.startswith("FlowMatchEuler"):
            for t in (theirs.timesteps[[3, 700]], theirs.timesteps[4:5]):
                assert difference(ours.scale_noise(x, t, noise), theirs.scale_noise(x, t, noise)) < 1e-6
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(8)
        t = theirs.timesteps[2:3]
        assert difference(ours.scale_noise(x, t, noise), theirs.scale_noise(x, t, noise)) < 1e-6
    for sigmas, config in itertools.product(([1.0, 0.7, 0.2], torch.linspace(1, 0.25, 4).tolist()), flows()):
        ours, theirs = pair("FlowMatchEulerDiscreteScheduler", **config)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(sigmas=sigmas)
        assert difference(ours.sigmas, theirs.sigmas) < 1e-6
        assert max(map(difference, protocol(ours), protocol(theirs))) < 1e-5
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler", shift=3.0)
    for scheduler in (ours, theirs):
        scheduler.set_shift(5.0)
        scheduler.set_timesteps(6)
    assert difference(ours.sigmas, theirs.sigmas) < 1e-6 and ours.shift == theirs.shift
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[900.0, 500.0, 10.0])
    assert max(map(difference, protocol(ours), protocol(theirs))) < 1e-5
    values = torch.linspace(1, 0.05, 5)
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler", shift_terminal=0.2)
    assert difference(ours.stretch_shift_to_terminal(values), theirs.stretch_shift_to_terminal(values)) < 1e-6
