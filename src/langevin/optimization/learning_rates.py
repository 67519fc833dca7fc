"""Learning rates over a training run, counted in optimizer steps: a warm-up and what comes after it.

A schedule is a factor of the learning rate at every step. `get_scheduler` and the named functions give it as the
documented `LambdaLR` of an optimizer.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, InputError, check_choice

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


class SchedulerType(Enum):
    """The names of the schedules."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    PIECEWISE_CONSTANT = "piecewise_constant"


def linear(progress: float) -> float:
    """Return what is left of a run."""
    return 1.0 - progress


def cosine(progress: float, *, cycles: float = 0.5) -> float:
    """Return a cosine that falls from 1 to 0 in half a cycle (Loshchilov & Hutter 2017, 1608.03983, eq. 5)."""
    return 0.5 * (1.0 + math.cos(2 * math.pi * cycles * progress))


def cosine_with_restarts(progress: float, *, cycles: float = 1) -> float:
    """Return a cosine that falls from 1 to 0 and jumps back, `cycles` times."""
    return 0.5 * (1.0 + math.cos(math.pi * (cycles * progress % 1.0))) if progress < 1 else 0.0


def polynomial(progress: float, *, power: float = 1.0, end: float = 0.0) -> float:
    """Return a power of what is left, down to `end`."""
    return (1.0 - end) * (1.0 - progress) ** power + end


FALLS: dict[str, Callable[..., float]] = {
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
}
"""Name of a schedule that falls -> the factor at a part of the run after the warm-up, from 0 to 1."""


def factor(name: str, step: int, *, warmup: int = 0, total: int | None = None, **shape: float) -> float:
    """Return the factor of the learning rate at an optimizer step, counted from 0.

    Args:
        name: a name of `SchedulerType`, but for piecewise_constant; constant has no warm-up.
        warmup: steps over which the factor rises from 0.
        total: steps of the run; needed by the schedules that fall.
        shape: `cycles`, `power` or `end` of the schedule.

    Raises:
        InputError: for an unknown name.
        ConfigError: without `total` where it is needed.
    """
    check_choice("lr_scheduler", name, [*FALLS, "constant", "constant_with_warmup"])
    if name != "constant" and step < warmup:
        return step / max(1, warmup)
    if name not in FALLS:
        return 1.0
    if total is None:
        raise ConfigError(f"The schedule {name!r} needs to know how long the run is: pass `num_training_steps`.")
    return FALLS[name](min((step - warmup) / max(1, total - warmup), 1.0), **shape)


def pieces(rules: str) -> Callable[[int], float]:
    """Return the factor at a step from rules such as "1:10,0.1:20,0.01": 1 before step 10, 0.1 before 20, then 0.01.

    Raises:
        InputError: when they cannot be read.
    """
    *parts, last = rules.split(",")
    try:
        values = [float(part.split(":")[0]) for part in parts]
        ends = [int(part.split(":")[1]) for part in parts]
        values.append(float(last))
    except (ValueError, IndexError):
        raise InputError(f"`step_rules` is {rules!r}; write it as 'factor:step,factor:step,factor'.") from None
    if ends != sorted(ends):
        raise InputError(f"`step_rules` is {rules!r}; its steps must rise.")
    return lambda step: values[bisect_right(ends, step)]


def _of(optimizer: Optimizer, rule: Callable[[int], float], last_epoch: int) -> LambdaLR:
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, rule, last_epoch)


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """Return a constant learning rate."""
    return _of(optimizer, partial(factor, "constant"), last_epoch)


def get_constant_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> LambdaLR:
    """Return a constant learning rate after a warm-up."""
    return _of(optimizer, partial(factor, "constant_with_warmup", warmup=num_warmup_steps), last_epoch)


def get_piecewise_constant_schedule(optimizer: Optimizer, step_rules: str, last_epoch: int = -1) -> LambdaLR:
    """Return a learning rate that changes at given steps, see `pieces`."""
    return _of(optimizer, pieces(step_rules), last_epoch)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Return a learning rate that rises and falls in straight lines."""
    return _of(optimizer, partial(factor, "linear", warmup=num_warmup_steps, total=num_training_steps), last_epoch)


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5, last_epoch: int = -1
) -> LambdaLR:
    """Return a learning rate that falls as a cosine after a warm-up."""
    rule = partial(factor, "cosine", warmup=num_warmup_steps, total=num_training_steps, cycles=num_cycles)
    return _of(optimizer, rule, last_epoch)


def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: int = 1, last_epoch: int = -1
) -> LambdaLR:
    """Return a learning rate that falls as a cosine `num_cycles` times after a warm-up."""
    rule = partial(factor, "cosine_with_restarts", warmup=num_warmup_steps, total=num_training_steps, cycles=num_cycles)
    return _of(optimizer, rule, last_epoch)


def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return a learning rate that falls to `lr_end` as a power of what is left.

    Raises:
        InputError: when the learning rate is not above `lr_end`.
    """
    start = optimizer.defaults["lr"]
    if not start > lr_end:
        raise InputError(f"`lr_end` is {lr_end}; it must be below the learning rate {start}.")
    shape = {"power": power, "end": lr_end / start}
    rule = partial(factor, "polynomial", warmup=num_warmup_steps, total=num_training_steps, **shape)
    return _of(optimizer, rule, last_epoch)


def get_scheduler(
    name: str | SchedulerType,
    optimizer: Optimizer,
    step_rules: str | None = None,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    num_cycles: int = 1,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Return the schedule of a name.

    Raises:
        InputError: for an unknown name.
        ConfigError: when something is missing that the schedule needs.
    """
    name = name.value if isinstance(name, SchedulerType) else name
    check_choice("name", name, [member.value for member in SchedulerType])
    if name == "constant":
        return get_constant_schedule(optimizer, last_epoch)
    if name == "piecewise_constant":
        if step_rules is None:
            raise ConfigError("A piecewise constant schedule needs `step_rules`, such as '1:10,0.1'.")
        return get_piecewise_constant_schedule(optimizer, step_rules, last_epoch)
    if num_warmup_steps is None:
        raise ConfigError(f"The schedule {name!r} needs `num_warmup_steps`.")
    if name == "constant_with_warmup":
        return get_constant_schedule_with_warmup(optimizer, num_warmup_steps, last_epoch)
    if num_training_steps is None:
        raise ConfigError(f"The schedule {name!r} needs `num_training_steps`.")
    both = (optimizer, num_warmup_steps, num_training_steps)
    if name == "cosine_with_restarts":
        return get_cosine_with_hard_restarts_schedule_with_warmup(*both, num_cycles, last_epoch)
    if name == "polynomial":
        return get_polynomial_decay_schedule_with_warmup(*both, power=power, last_epoch=last_epoch)
    make = get_linear_schedule_with_warmup if name == "linear" else get_cosine_schedule_with_warmup
    return make(*both, last_epoch=last_epoch)
