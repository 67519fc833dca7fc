"""Learning rates: the peer's curves, and what is refused."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from langevin.core.errors import ConfigError, InputError
from langevin.optimization import learning_rates

NAMES = [member.value for member in learning_rates.SchedulerType]
TOTAL = 50


def curve(module, name: str, steps: int, **options) -> torch.Tensor:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = module.get_scheduler(name, optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_the_curves_are_the_peers(name: str) -> None:
    from diffusers import optimization

    for warmup, cycles, power in product((0, 7), (1, 3), (1.0, 2.0)):
        options = {"num_warmup_steps": warmup, "num_training_steps": TOTAL, "num_cycles": cycles, "power": power}
        options["step_rules"] = "1:10,0.1:20,0.01"
        ours, theirs = (curve(m, name, TOTAL + 1, **options) for m in (learning_rates, optimization))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_cosine_stays_at_its_end_when_a_run_goes_on() -> None:
    from diffusers import optimization

    options = {"num_warmup_steps": 5, "num_training_steps": TOTAL}
    ours, theirs = (curve(m, "cosine", TOTAL + 20, **options) for m in (learning_rates, optimization))
    assert ours[TOTAL:].abs().max() < 1e-12
    assert theirs[TOTAL:].max() > 0.05


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("linear", {"num_warmup_steps": 3}, "num_training_steps"),
        ("linear", {"num_training_steps": 3}, "num_warmup_steps"),
        ("piecewise_constant", {}, "step_rules"),
        ("piecewise_constant", {"step_rules": "1:x,2"}, "factor:step"),
        ("piecewise_constant", {"step_rules": "1:20,0.1:10,0.01"}, "must rise"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises((ConfigError, InputError), match=words):
        curve(learning_rates, name, 1, **options)


def test_the_last_learning_rate_of_a_polynomial_is_that_asked_for() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    with pytest.raises(InputError, match="lr_end"):
        learning_rates.get_polynomial_decay_schedule_with_warmup(optimizer, 0, TOTAL, lr_end=0.5)
    assert learning_rates.factor("polynomial", TOTAL, total=TOTAL, end=0.25, power=2.0) == 0.25
