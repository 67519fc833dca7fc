"""The documented protocol of the consistency samplers, unCLIP, RePaint, and DDIM's and DDPM's kin."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.schedulers.oracle import difference, first_noise, network, peer, planned, protocol, seeded

GROUP = (
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "CMStochasticIterativeScheduler",
    "UnCLIPScheduler",
    "RePaintScheduler",
)
LOOPED = GROUP[:-1]
"""Those whose `step` needs no image."""


def make(name: str, **config):
    return getattr(langevin, name)(**config)


@pytest.mark.parity
@pytest.mark.parametrize("name", GROUP)
def test_signatures_are_the_documented_ones(name: str) -> None:
    """Same configuration keys, defaults and order; the same arguments in the same places."""
    ours, theirs = getattr(langevin, name), peer(name)

    def parameters(method, cls):
        found = list(inspect.signature(getattr(cls, method)).parameters.values())[1:]
        return [(p.name, p.default) for p in found if p.kind is not p.VAR_KEYWORD]

    assert parameters("__init__", ours) == parameters("__init__", theirs)
    for method in ("step", "batch_step_no_noise", "undo_step"):
        if hasattr(theirs, method):
            assert parameters(method, ours) == parameters(method, theirs)
    documented = [key for key, _ in parameters("set_timesteps", theirs)]
    assert [key for key, _ in parameters("set_timesteps", ours)][: len(documented)] == documented
    assert list(getattr(ours, "_compatibles", ())) == list(getattr(theirs, "_compatibles", []))
    assert ours.order == 1


@pytest.mark.parity
@pytest.mark.parametrize("name", LOOPED)
def test_as_many_results_as_documented(name: str) -> None:
    results = []
    for scheduler in (make(name), peer(name)()):
        scheduler.set_timesteps(4)
        x, t = first_noise(), scheduler.timesteps[0]
        results.append(scheduler.step(network(x, t), t, x, return_dict=False))
    assert len(results[0]) == len(results[1])


@pytest.mark.parity
@pytest.mark.parametrize("name", GROUP)
def test_files_are_read_by_the_peer_and_back(name: str, tmp_path) -> None:
    ours = make(name)
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())["_class_name"] == name
    peer(name).from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = type(ours).from_pretrained(tmp_path / "theirs")
    keys = [key for key in ours.config if not key.startswith("_")]
    assert {k: back.config[k] for k in keys} == {k: ours.config[k] for k in keys}


def test_old_option_of_inversion() -> None:
    assert make("DDIMInverseScheduler", set_alpha_to_zero=False).config.set_alpha_to_one is False
    from_other = langevin.DDIMInverseScheduler.from_config(make("DDIMScheduler", steps_offset=1).config)
    assert from_other.config.steps_offset == 1


@pytest.mark.parametrize("name", LOOPED)
def test_before_and_after_a_schedule(name: str) -> None:
    scheduler = make(name)
    total = len(scheduler)
    assert scheduler.num_inference_steps is None and len(scheduler.timesteps) == total
    x, t = first_noise(), scheduler.timesteps[1]
    assert scheduler.step(network(x, t), t, x).prev_sample.shape == x.shape
    scheduler.set_num_inference_steps(5)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 5
    twin = copy.deepcopy(scheduler)
    first = protocol(scheduler, generator=seeded()) if "generator" in arguments(name) else protocol(scheduler)
    again = protocol(scheduler, generator=seeded()) if "generator" in arguments(name) else protocol(scheduler)
    assert torch.equal(first[-1], again[-1]) and twin.step_index is None and scheduler.step_index == 5
    with pytest.raises(InputError, match="not in the schedule"):
        scheduler.step(x, 17.3, x)
    with pytest.raises(ConfigError):
        scheduler.plan(5, etta=0.5)
    with pytest.raises(ConfigError):
        make(name, num_train_timestep=10)


def arguments(name: str):
    return inspect.signature(getattr(langevin, name).step).parameters


@pytest.mark.parametrize("name", LOOPED)
def test_plan_and_protocol_agree_from_any_start(name: str) -> None:
    for first in (0, 2, 4):
        scheduler = make(name)
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(first)
        x, options = first_noise(), {"generator": seeded()} if "generator" in arguments(name) else {}
        for t in scheduler.timesteps[first:]:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
        table = planned(make(name).plan(5).part(first), x=first_noise(), generator=seeded())
        assert difference(table, x) < 1e-6


@pytest.mark.parametrize("name", LOOPED)
def test_half_precision_and_no_global_noise(name: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    scheduler = make(name)
    scheduler.set_timesteps(3)
    x = first_noise().half() * float(scheduler.init_noise_sigma)
    end = protocol(scheduler, x=x)[-1]
    assert end.dtype == torch.float16 and torch.isfinite(end).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_whole_numbers_of_steps() -> None:
    """As many steps as asked, no timestep twice, over the whole range."""
    for name, counts in (("LCMScheduler", range(1, 51)), ("TCDScheduler", range(1, 51)), ("UnCLIPScheduler", (1, 999))):
        for steps in counts:
            times = [step.timestep for step in make(name).plan(steps).steps]
            assert len(set(times)) == len(times) == steps and min(times) >= 0
    for steps in range(1, 41):
        times = [step.timestep for step in make("CMStochasticIterativeScheduler").plan(steps).steps]
        assert len(set(times)) == len(times) == steps


def test_repaint_by_image() -> None:
    """Image k of a batch is the one its generator makes alone; tuples hold what the mapping holds."""
    original, mask = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    mask[..., 2:] = 0.0
    ends = []
    for rows, generator in ((slice(0, 2), [seeded(1), seeded(2)]), (slice(1, 2), seeded(2))):
        scheduler = make("RePaintScheduler", eta=0.5)
        scheduler.set_timesteps(6, jump_length=2, jump_n_sample=2)
        x, last = first_noise()[rows], 1000
        for t in scheduler.timesteps.tolist():
            if t < last:
                options = (original[rows], mask[rows], generator)
                x = scheduler.step(network(x, t), t, x, *options, return_dict=False)[0]
            else:
                x = scheduler.undo_step(x, last, generator)
            last = t
        ends.append(x)
    assert torch.allclose(ends[0][1:], ends[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(ends[0] * mask, original * mask)


def test_foreign_timesteps_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    from langevin.schedulers import preserving

    preserving.logger.propagate = True
    make("LCMScheduler").set_timesteps(timesteps=[999, 759, 700])
    assert "700" in caplog.text
