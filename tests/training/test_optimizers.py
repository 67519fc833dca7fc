"""Optimizers by name: resuming is exact with each, and what is missing or contradicts itself is said."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import pytest
import torch

from langevin.core.errors import ConfigError, InputError, MissingDependencyError
from langevin.core.imports import is_available
from langevin.training.optimizers import optimizer
from langevin.training.settings import Settings
from tests.training.line import trainer
from tests.training.test_trainer import Stopped, stop_at

KINDS = {
    "adamw": {},
    "8-bit adamw": {"use_8bit_adam": True},
    "adafactor": {"optimizer": "adafactor"},
    "prodigy": {"optimizer": "prodigy"},
}
PACKAGES = {"8-bit adamw": "bitsandbytes", "prodigy": "prodigyopt"}


def flat(state: Any) -> list[Any]:
    """Return all values in a state, tensors as bytes."""
    if isinstance(state, dict):
        return [part for name in state for part in [name, *flat(state[name])]]
    if isinstance(state, (list, tuple)):
        return [part for one in state for part in flat(one)]
    return [state.double().numpy().tobytes() if isinstance(state, torch.Tensor) else state]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_bits_of_one_that_was_not(kind: str, tmp_path) -> None:
    if kind in PACKAGES and not is_available(PACKAGES[kind]):
        pytest.skip(f"{PACKAGES[kind]} is not installed")
    options = {"optimizer": partial(optimizer, settings=Settings(**KINDS[kind])), "steps": 16}
    whole = trainer(tmp_path / "whole", **options)
    whole.fit()
    with pytest.raises(Stopped):
        trainer(tmp_path / "other", watch=[stop_at(6)], **options).fit()
    again = trainer(tmp_path / "other", resume="latest", **options)
    again.fit()
    for held in (lambda run: run.task.net.state_dict(), lambda run: run.optimizer.state_dict()):
        assert flat(held(again)) == flat(held(whole))
    one, two = ((run.run.folder / "log.jsonl").read_text() for run in (whole, again))
    losses = [json.loads(line)["loss"] for line in one.splitlines()]
    assert one == two and min(losses[-3:]) < losses[0]


def test_adamw_is_one_kernel_with_its_settings() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1}]
    made = optimizer(groups, Settings(adam_beta1=0.8, adam_epsilon=1e-6, adam_weight_decay=0.5))
    (group,) = made.param_groups
    assert group["fused"] and (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        0.1, (0.8, 0.999), 1e-6, 0.5,
    )  # fmt: skip


def test_what_is_missing_or_contradicts_itself_is_said(monkeypatch) -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1}]
    for kind, package in PACKAGES.items():
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr("langevin.core.imports.is_available", lambda name: False)
        with pytest.raises(MissingDependencyError, match=package):
            optimizer(groups, Settings(**KINDS[kind]))
    with pytest.raises(ConfigError, match="use_8bit_adam is a form of adamw"):
        optimizer(groups, Settings(optimizer="prodigy", use_8bit_adam=True))
    with pytest.raises(InputError, match="did you mean 'adafactor'"):
        optimizer(groups, Settings(optimizer="adafactr"))
