"""Loops that run a scheduler and the peer's scheduler of the same name over the same toy network."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch

import langevin
from langevin.core.rng import normal
from langevin.diffusion import Plan, sample

EVERY = int(os.environ.get("LANGEVIN_PARITY_EVERY", "5"))
"""Which cases of a product of options are run: every fifth, and all with 1, which `make parity` sets.

No option has five values, so every value of every option is met."""
SHAPE = (2, 3, 4, 4)
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ("leading", "trailing", "linspace")
KINDS = ("epsilon", "sample", "v_prediction")
COUNTS = (4, 25, 11, 50)
NAMES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)


@cache
def peer(name: str) -> Any:
    """Return the peer's class of the given name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("diffusers")
        module.utils.logging.set_verbosity_error()
        return getattr(module, name)


def pair(name: str, **config: Any) -> tuple[Any, Any]:
    """Return (ours, the peer's) scheduler with the same configuration."""
    return getattr(langevin, name)(**config), peer(name)(**config)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(x: torch.Tensor, t: Any, *, doubled: bool = False) -> torch.Tensor:
    """A deterministic nonlinear toy network of bounded slope; `doubled` adds channels for a learned variance."""
    phase = 0.3 * torch.sin(torch.tensor(float(t) / 90.0, dtype=x.dtype))
    out = torch.tanh(0.8 * x + 0.2 * x.roll(1, -1) + phase)
    return torch.cat([out, torch.sin(1.3 * x)], dim=1) if doubled else out


def timeless(x: torch.Tensor, t: Any, *, doubled: bool = False) -> torch.Tensor:
    """The toy network without its time, for schedules whose timesteps differ on purpose."""
    return network(x, 0, doubled=doubled)


def first_noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=seeded(7), dtype=torch.float32)


def protocol(
    scheduler: Any, *, model: Any = network, doubled: bool = False, x: Any = None, **options: Any
) -> list[torch.Tensor]:
    """Run the documented user loop over `scheduler.timesteps` and return every sample."""
    x = first_noise() * float(scheduler.init_noise_sigma) if x is None else x
    samples = []
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t, doubled=doubled)
        x = scheduler.step(output, t, x, **options).prev_sample
        samples.append(x)
    return samples


def planned(
    plan: Plan, *, model: Any = network, doubled: bool = False, x: Any = None, generator: Any = None, watch: Any = None
) -> torch.Tensor:
    """Run the same loop through a plan and return the last sample; `watch` sees every one."""
    x = plan.start(first_noise()) if x is None else x
    return sample(
        lambda x, step: model(x * step.in_scale, step.timestep, doubled=doubled),
        x,
        plan,
        noise=lambda: normal(x.shape, generator=generator, dtype=x.dtype),
        on_step=(lambda step, x: watch(x)) if watch else None,
    )


def each(ours: Any, theirs: Any, *, dtype: torch.dtype = torch.float64) -> Iterator[Any]:
    """Yield ours and then the peer's scheduler, which computes in float64 in its turn if that is the `dtype`."""
    yield ours
    with in_double(theirs) if dtype == torch.float64 else nullcontext():
        yield theirs


class Widened:
    """A module some of whose names mean something else."""

    def __init__(self, module: Any, **names: Any) -> None:
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def in_double(theirs: Any) -> Iterator[Any]:
    """Let the peer's scheduler compute and draw in float64, from its float32 `alphas_cumprod` on."""
    module = sys.modules[type(theirs).__module__]
    wide = {"torch": Widened(torch, float32=torch.float64), "np": Widened(np, float32=np.float64)}
    kept = {name: vars(module)[name] for name in wide if name in vars(module)}
    vars(module).update({name: wide[name] for name in kept})
    if hasattr(theirs, "alphas_cumprod"):
        bars = theirs.alphas_cumprod.double()
        alphas = bars / torch.cat([torch.ones(1, dtype=bars.dtype), bars[:-1]])
        theirs.alphas_cumprod, theirs.alphas, theirs.betas = bars, alphas, 1 - alphas
    torch.set_default_dtype(torch.float64)
    try:
        yield theirs
    finally:
        torch.set_default_dtype(torch.float32)
        vars(module).update(kept)


def gap_in_double(ours: Any, theirs: Any, steps: int, **run: Any) -> float:
    """Return the largest difference of two whole runs in float64, from equal generators."""
    runs = []
    for scheduler in each(ours, theirs):
        scheduler.set_timesteps(steps)
        x = first_noise().double() * float(scheduler.init_noise_sigma)
        runs.append(protocol(scheduler, x=x, generator=seeded(), **run))
    return max(map(difference, *runs))


def rounding(
    name: str, steps: int, config: dict[str, Any], *, model: Any = network, stop: int | None = None, **run: Any
) -> dict[str, float]:
    """Return how far runs are from the float64 one of ours: ours and the peer's in float32, the peer's in float64.

    Where only the second is far off, the two libraries mean the same and the difference is the peer's rounding.

    Args:
        stop: where the comparison ends, None for the whole run.
    """
    ours, theirs = pair(name, **config)
    plan, samples, x = ours.plan(steps, **run), {}, first_noise()
    for kind in (torch.float64, torch.float32):
        samples[kind] = []
        planned(plan, model=model, x=x.to(kind) * plan.init_noise_sigma, watch=samples[kind].append)
    theirs.set_timesteps(steps)
    single = protocol(theirs, model=model, **run)
    with in_double(pair(name, **config)[1]) as theirs:
        theirs.set_timesteps(steps)
        double = protocol(theirs, model=model, x=x.double() * float(theirs.init_noise_sigma), **run)
    assert double[-1].dtype == torch.float64
    runs = {"ours": samples[torch.float32], "peer": single, "peer in float64": double}
    return {key: max(map(difference, made[:stop], samples[torch.float64][:stop])) for key, made in runs.items()}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference relative to the largest value of b, infinity for other shapes or NaN."""
    if a.shape != b.shape:
        return float("inf")
    gap = float((a.double() - b.double()).abs().max()) / max(float(b.double().abs().max()), 1e-3)
    return gap if gap == gap else float("inf")


def product(**options: Any) -> Iterator[dict[str, Any]]:
    """Return the full product of options as dictionaries."""
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values, strict=True))


def counted(configs: Iterable[dict[str, Any]], *, counts: Sequence[int] = COUNTS, **run: Any) -> Iterator[Any]:
    """Pair every configuration with a number of steps, taking turns, and with the options of the run."""
    for config, steps in zip(configs, itertools.cycle(counts), strict=False):
        yield steps, config, dict(run)


def compare(name: str, steps: int, config: dict[str, Any], **run: Any) -> dict[str, float]:
    """Return what differs between ours, the peer and the plan: timesteps, levels, noising, and whole trajectories.

    Stochastic runs draw from equal generators, which must end in equal states.
    """
    model, doubled = run.pop("model", network), run.pop("doubled", False)
    stochastic = run.pop("stochastic", False)
    ours, theirs = pair(name, **config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    generators = [seeded() for _ in range(3)]
    drawing = [{"generator": g} if stochastic else {} for g in generators]
    mine = protocol(ours, model=model, doubled=doubled, **run, **drawing[0])
    reference = protocol(theirs, model=model, doubled=doubled, **run, **drawing[1])
    plan = type(ours)(**config).plan(steps, **run)
    table = planned(plan, model=model, doubled=doubled, **drawing[2])
    gaps = {
        "steps": float(len(mine) != len(reference)),
        "timesteps": difference(ours.timesteps.float(), theirs.timesteps.float()),
        "init": difference(torch.tensor(float(ours.init_noise_sigma)), torch.tensor(float(theirs.init_noise_sigma))),
        "trajectory": max(map(difference, mine, reference)),
        "plan": difference(table, mine[-1]),
        "draws": float(stochastic and not torch.equal(generators[0].get_state(), generators[1].get_state())),
    }
    if hasattr(theirs, "sigmas"):
        gaps["sigmas"] = difference(ours.sigmas, theirs.sigmas)
    return gaps


def failures(
    name: str,
    cases: Any,
    *,
    limit: float = 2e-5,
    labels: float = 1e-6,
    plan: float = 1e-6,
    apart: tuple[str, ...] = (),
    rounded: bool = False,
) -> list[str]:
    """Run `compare` over (steps, config, run options) and return one line per case that differs too much.

    Args:
        limit, labels, plan: bounds of trajectories, of timesteps, and of runs through a plan.
        apart: entries of `compare` that differ on purpose.
        rounded: whether a trajectory that is farther away than `limit` in float32 may be the peer's rounding, which is
            then proved by `rounding`.
    """
    found, count = [], 0
    for steps, config, run in itertools.islice(cases, 0, None, EVERY):
        gaps = compare(name, steps, config, **run)
        if rounded and gaps["trajectory"] > limit:
            causes = rounding(name, steps, config, **run)
            gaps["trajectory"] = max(causes["ours"], causes["peer in float64"])
        bounds = {"timesteps": labels, "trajectory": limit, "plan": plan}
        bad = {key: gap for key, gap in gaps.items() if key not in apart and not gap <= bounds.get(key, 1e-6)}
        count += 1
        if bad:
            found.append(f"{steps} steps, {config}, {sorted(run)}: {bad}")
    assert count
    return found
