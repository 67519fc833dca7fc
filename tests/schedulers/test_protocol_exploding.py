"""The documented protocol of the two-stage, multistep and flow schedulers."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.schedulers.oracle import first_noise, network, peer, planned, protocol, seeded

NAMES = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "IPNDMScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
)
FLOWS = NAMES[-2:]


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_files(name: str, tmp_path) -> None:
    """Options in the peer's order with its defaults; files go both ways."""
    ours, theirs = getattr(langevin, name), peer(name)
    mine, reference = (inspect.signature(c.__init__).parameters for c in (ours, theirs))
    assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in reference.values()]
    mine, reference = (list(inspect.signature(c.step).parameters) for c in (ours, theirs))
    assert mine == [p for p in reference if p != "per_token_timesteps"]
    assert ours.order == theirs.order and set(ours._compatibles) == set(theirs._compatibles)
    ours().save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())["_class_name"] == name
    theirs.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = ours.from_pretrained(tmp_path / "theirs")
    assert all(back.config[k] == v for k, v in ours().config.items() if not k.startswith("_"))


@pytest.mark.parametrize("name", [*NAMES, "DPMSolverSDEScheduler"])
def test_loop_plan_and_starts_agree(name: str) -> None:
    """By position, by timestep and through `part`, from every network call."""
    drawing = {"generator": seeded()} if name in ("KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler") else {}
    scheduler = getattr(langevin, name)()
    scheduler.set_timesteps(6)
    assert torch.equal(scheduler.timesteps, torch.tensor([s.timestep for s in scheduler.plan(6).steps]).float())
    assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
    for first in range(0, len(scheduler.timesteps)):
        scheduler.set_begin_index(first)
        x = first_noise()
        if drawing:
            drawing["generator"] = seeded()
        for t in scheduler.timesteps[first:]:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **drawing).prev_sample
        assert scheduler.step_index == len(scheduler.timesteps)
        table = planned(scheduler.plan(6).part(first), x=first_noise(), generator=seeded())
        assert torch.allclose(x, table, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_errors_of_flows(name: str) -> None:
    scheduler = getattr(langevin, name)()
    x = first_noise()
    with pytest.raises(InputError, match="descend"):
        scheduler.set_timesteps(sigmas=[1.0, 0.2, 0.5])
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        scheduler.set_timesteps(sigmas=[1.5, 0.2])
    with pytest.raises(InputError, match="in \\[0, 1000\\]"):
        scheduler.set_timesteps(timesteps=[1200.0, 10.0])
    with pytest.raises(InputError, match="sigma = 0"):
        scheduler.set_timesteps(sigmas=[0.0])
    with pytest.raises(InputError, match="nearest is"):
        scheduler.step(x, 1.5, x)
    with pytest.raises(InputError, match="needs `noise`"):
        scheduler.scale_noise(x, scheduler.timesteps[:1])
    with pytest.raises(ConfigError, match="shift"):
        getattr(langevin, name)(shfit=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0])
    assert scheduler.sigmas.tolist()[-1] == 0.0 and scheduler.num_inference_steps == 2


def test_errors_of_the_others() -> None:
    with pytest.raises(InputError, match="in \\[0, 1\\]"):
        langevin.IPNDMScheduler().set_timesteps(timesteps=[999, 3])
    with pytest.raises(InputError, match="above 0"):
        langevin.IPNDMScheduler().set_timesteps(sigmas=[0.5])
    lms = langevin.LMSDiscreteScheduler()
    lms.set_timesteps(4)
    with pytest.raises(InputError, match="at least 1"):
        lms.step(first_noise(), lms.timesteps[0], first_noise(), order=0)
    with pytest.raises(ConfigError, match="exclude"):
        langevin.HeunDiscreteScheduler(use_karras_sigmas=True, use_exponential_sigmas=True)


def test_stochastic_flow_draws_for_each_image() -> None:
    scheduler = langevin.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(5)
    both = protocol(scheduler, generator=[seeded(1), seeded(2)])[-1]
    alone = protocol(scheduler, x=first_noise()[1:], generator=seeded(2))[-1]
    assert torch.allclose(both[1:], alone, rtol=1e-5, atol=1e-6)


def test_inverted_timesteps_are_those_the_network_is_told() -> None:
    inverted = langevin.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    steps = inverted.plan(timesteps=[100, 400, 900]).steps
    assert [step.timestep for step in steps] == pytest.approx([100, 400, 900])
    assert [step.level.sigma for step in steps] == pytest.approx([0.9, 0.6, 0.1])
    with pytest.raises(InputError, match="must descend"):
        inverted.plan(timesteps=[900, 400])
