"""What the contract tests share: which public samplers take part, in which configurations, and how they are driven."""

from __future__ import annotations

import inspect
import os
import random
from typing import Any

import torch

import langevin
from langevin import registry
from langevin.core.rng import seeded
from langevin.diffusion import noised
from langevin.evaluation.analytic import Gaussian
from langevin.evaluation.driving import Bench
from langevin.evaluation.lab import ONE, PICTURE
from langevin.evaluation.schedule import network

APART = {"VQDiffusionScheduler": "it draws discrete tokens, which have no noise level and a loop of their own"}
"""Public schedulers that cannot take part, with the reason."""

BY_TABLE = {
    "KarrasVeScheduler": "a step by hand takes the raised sample, and is told noise levels instead of timesteps",
    "RePaintScheduler": "a step by hand takes the picture and the mask whose rest is painted",
    "ScoreSdeVeScheduler": "a loop by hand makes corrections between the timesteps, by a method of their own",
}
"""Schedulers that the documented loop does not drive; they take part by their tables."""

IN_THE_LIMIT = {
    "ScoreSdeVeScheduler": "Langevin corrections add noise at every level and take none of it away",
    "ScoreSdeVpScheduler": "Euler-Maruyama steps of the reverse equation are exact only in the limit of many",
}
"""Schedulers that miss the data with the exact noise, by their definition."""

LIMITS = {"CMStochasticIterativeScheduler": 40, "LCMScheduler": 50, "TCDScheduler": 50}
"""Most steps of samplers that choose from a coarser schedule than the training one."""

UPWARDS = {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"}
"""Samplers from data to noise."""

CALLS = {
    "PNDMScheduler": lambda n, c: n + min(n - 1, 1) if c.config.skip_prk_steps else n + 3 * min(n - 1, 3),
    "RePaintScheduler": lambda n, c: n + 9 * 10 * len(range(0, n - 10, 10)),
    "ScoreSdeVeScheduler": lambda n, c: n * (1 + c.config.correct_steps),
}
"""Network calls of n steps where they are not `order` per step; (n, scheduler) -> calls. RePaint walks ten steps nine
times more from every tenth step."""

REPEATS = {"PNDMScheduler": 4, "ScoreSdeVeScheduler": 2}
"""How often a timestep may be asked in a row where it is not `order` times: the middle of a Runge-Kutta step of one
training step is its end, and corrections ask where they are."""

NAMES = [r.name for r in registry.SCHEDULERS if r.name.endswith("Scheduler") and r.name not in APART]
BY_HAND = [name for name in NAMES if name not in BY_TABLE]


def configurations(name: str) -> list[dict[str, Any]]:
    """Return the spacings and sigma schedules of a class, one option at a time."""
    own = inspect.signature(getattr(langevin, name).__init__).parameters
    spacings = [{"timestep_spacing": s} for s in ("leading", "trailing", "linspace") if "timestep_spacing" in own]
    schedules = [{option: True} for option in ("use_karras_sigmas", "use_exponential_sigmas") if option in own]
    schedules += [{"sigma_schedule": s} for s in ("karras", "exponential") if "sigma_schedule" in own]
    clean = {"set_alpha_to_one": True} if "set_alpha_to_one" in own else {}
    return [{**clean, **options} for options in (*spacings, *schedules)] or [clean]


def benches(name: str) -> list[tuple[dict[str, Any], Bench]]:
    return [(options, Bench(getattr(langevin, name)(**options))) for options in configurations(name)]


def bench_of(name: str) -> Bench:
    return Bench(getattr(langevin, name)())


def exact_noise(bench: Bench, steps: int, first: int) -> float:
    """Return how far a run by the table ends from the data when the network returns the exact noise of its sample.

    The data are the sample at the last level, or the estimate of the data where a sampler hands that out.
    """
    schedule = bench.schedule(steps)
    draw = torch.randn(PICTURE.shape, generator=seeded(first), dtype=torch.float64)
    x = noised(PICTURE, draw, schedule.calls[first].level)
    x = bench.by_table(steps, network(ONE, schedule.prediction), x, generator=seeded(steps), first=first)
    ends = (noised(PICTURE, draw, schedule.end), PICTURE)
    return min(float((x - end).abs().max()) for end in ends)


def declared(name: str, bench: Bench, steps: int) -> tuple[int, ...]:
    """Return the numbers of calls that are as declared for `steps`."""
    if name in CALLS:
        return (CALLS[name](steps, bench.scheduler),)
    return (bench.order * steps, bench.order * (steps - 1) + 1)


def most(name: str, options: dict[str, Any]) -> int:
    """Return the largest number of steps, up to 1000; an inversion visits one level of the training table more."""
    inverse = name == "DPMSolverMultistepInverseScheduler"
    return 999 if inverse and options.get("timestep_spacing") in ("leading", "trailing") else LIMITS.get(name, 1000)


def some_counts(name: str, options: dict[str, Any]) -> list[int]:
    """Return numbers of steps from 1 to 1000, some of which differ from case to case but not from run to run.

    With LANGEVIN_COUNTS=all in the environment: all of them.
    """
    if os.environ.get("LANGEVIN_COUNTS") == "all":
        return list(range(1, 1001))
    draw = random.Random(f"{name} {options}")
    return sorted({1, 2, draw.randint(3, 99), draw.randint(100, 1000)})


def gaussian_run(bench: Bench, rows: list[int], *, by_hand: bool = True, steps: int = 6) -> torch.Tensor:
    """Run images that have a first sample and a generator each, over Gaussian data."""
    schedule = bench.schedule(steps)
    level = schedule.calls[0].level
    x = torch.cat([Gaussian().noised((1, 3, 4, 4), level, seeded(100 + k)) for k in rows])
    generator = [seeded(k) for k in rows]
    run = bench.by_hand if by_hand else bench.by_table
    return run(steps, network(Gaussian(), schedule.prediction), x, generator=generator)
