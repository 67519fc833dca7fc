"""Signatures, files and errors of the solvers in log signal-to-noise ratio and of the preconditioned schedulers."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

import langevin
from langevin.core.errors import ConfigError, InputError
from tests.schedulers.oracle import first_noise, network, pair, peer
from tests.schedulers.test_parity_exponential import cosine_peer

NAMES = (
    "DPMSolverSinglestepScheduler", "DPMSolverMultistepInverseScheduler", "DEISMultistepScheduler",
    "UniPCMultistepScheduler", "SASolverScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler",
)  # fmt: skip
FLOWING = NAMES[:5]


def options(function) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: list(p.default) if p.default == () else p.default for p in parameters if p.kind not in kinds}


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_documented_signatures(name: str) -> None:
    """The same options with the same defaults in the same order; `set_timesteps` may take more after them."""
    ours, theirs = getattr(langevin, name), peer(name)
    for method in ("__init__", "step"):
        assert list(options(getattr(ours, method)).items()) == list(options(getattr(theirs, method)).items()), method
    wanted = list(options(theirs.set_timesteps))
    given = list(options(ours.set_timesteps))
    assert given[: len(wanted)] == wanted
    assert ours.order == theirs.order and {*ours._compatibles} == {*theirs._compatibles}


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_files_are_read_by_the_peer_and_back(name: str, tmp_path) -> None:
    ours = getattr(langevin, name)(prediction_type="v_prediction")
    ours.save_pretrained(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    assert saved["_class_name"] == name and "tau_func" not in saved and "solver_p" not in saved
    theirs = peer(name).from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = type(ours).from_pretrained(tmp_path / "theirs")
    plain = {k: list(v) if v == () else v for k, v in ours.config.items() if not k.startswith("_")}
    assert plain == {k: back.config[k] for k in plain} == {k: theirs.config[k] for k in plain}


@pytest.mark.parity
def test_cosine_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = langevin.CosineDPMSolverMultistepScheduler, cosine_peer(monkeypatch)
    assert list(options(ours.__init__).items()) == list(options(theirs.__init__).items())
    assert list(options(ours.step)) == list(options(theirs.step))


@pytest.mark.parametrize("name", NAMES)
def test_results_and_positions(name: str) -> None:
    scheduler = getattr(langevin, name)()
    x = first_noise()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == 2 and scheduler.step_index is None
    t = scheduler.timesteps[2]
    result = scheduler.step(network(x, t), t, x, return_dict=False)
    assert len(result) == (2 if name == "EDMEulerScheduler" else 1) and scheduler.step_index == 3
    with pytest.raises(InputError, match="positions 0 to 3"):
        scheduler.set_begin_index(4)
    with pytest.raises(ConfigError, match="sigma"):
        getattr(langevin, name)(use_karras_sigma=True)


@pytest.mark.parametrize("name", FLOWING)
def test_errors_of_options(name: str) -> None:
    made = getattr(langevin, name)
    with pytest.raises(ConfigError, match="use_flow_sigmas"):
        made(prediction_type="flow_prediction")
    with pytest.raises(InputError, match="mu"):
        made(use_flow_sigmas=True).set_timesteps(5, mu=1.0)
    with pytest.raises(InputError, match="num_inference_steps"):
        made(use_flow_sigmas=True).set_timesteps(timesteps=[900, 100])
    with pytest.raises(ConfigError, match="exclude each other"):
        made(use_karras_sigmas=True, use_beta_sigmas=True)


def test_errors_of_single_classes() -> None:
    with pytest.raises(InputError, match="bh2"):
        langevin.UniPCMultistepScheduler(solver_type="bh3")
    with pytest.raises(InputError, match="solver_order"):
        langevin.DEISMultistepScheduler(solver_order=4)
    with pytest.raises(ConfigError, match="shift_terminal"):
        langevin.UniPCMultistepScheduler(shift_terminal=0.1)
    with pytest.raises(InputError, match="needs `mu`"):
        langevin.UniPCMultistepScheduler(use_flow_sigmas=True, use_dynamic_shifting=True).set_timesteps(5)
    with pytest.raises(InputError, match="contradict"):
        karras = langevin.UniPCMultistepScheduler(use_flow_sigmas=True, use_karras_sigmas=True)
        karras.set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(ConfigError, match="sigma_min"):
        langevin.DPMSolverSinglestepScheduler(algorithm_type="dpmsolver")
    with pytest.raises(InputError, match="corrector_order"):
        langevin.SASolverScheduler(corrector_order=5)
    with pytest.raises(InputError, match="churn"):
        euler, x = langevin.EDMEulerScheduler(), first_noise()
        euler.set_timesteps(3)
        euler.step(x, euler.timesteps[0], x, s_churn=1.0, pred_original_sample=x)


def test_strength_is_taken_along_but_not_saved() -> None:
    def full(t: float) -> float:
        return 1.0

    scheduler = langevin.SASolverScheduler(tau_func=full)
    assert "tau_func" not in scheduler.config and scheduler.tau_func is full
    other = langevin.SASolverScheduler.from_config(scheduler.config, tau_func=full)
    assert other.plan(5).rows == scheduler.plan(5).rows != langevin.SASolverScheduler().plan(5).rows


def test_custom_flow_sigmas_end_by_the_final_type() -> None:
    scheduler, _ = pair("UniPCMultistepScheduler", use_flow_sigmas=True)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1])
    assert torch.allclose(scheduler.sigmas, torch.tensor([0.9, 0.5, 0.1, 0.0])) and scheduler.num_inference_steps == 3
