"""Loops that run a scheduler and the peer's scheduler of the same name over the same toy network."""

from __future__ import annotations

import importlib
import warnings

import torch

import langevin

SHAPE = (2, 3, 6, 6)
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def peer(name):
    """Return the peer's class of the given name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module("diffusers"), name)


def pair(name, **config):
    """Return (ours, the peer's) scheduler with the same configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(langevin, name)(**config), peer(name)(**config)


def network(x, t, *, doubled=False):
    """A deterministic nonlinear toy network of bounded slope; `doubled` adds channels for a learned variance."""
    t = float(t)
    out = torch.tanh(0.8 * x + 0.2 * x.roll(1, -1) + 0.3 * torch.sin(torch.tensor(t / 90.0)))
    return torch.cat([out, torch.sin(1.3 * x)], dim=1) if doubled else out


def start(scheduler):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
    return x * float(scheduler.init_noise_sigma)


def protocol(scheduler, *, doubled=False, generator=None, model=network, dtype=torch.float32, x=None, **options):
    """Run the documented user loop over `scheduler.timesteps`; return all samples."""
    x = (start(scheduler) if x is None else x).to(dtype)
    samples = []
    if generator is not None:
        options["generator"] = generator
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t).float(), t, doubled=doubled).to(dtype)
        x = scheduler.step(output, t, x, **options).prev_sample
        samples.append(x)
    return samples


def planned(scheduler, steps=None, *, doubled=False, generator=None, model=network, x=None, **options):
    """Run the same loop through `plan` and `sample`; return the last sample."""
    from langevin.core.rng import normal
    from langevin.diffusion import sample

    plan = scheduler.plan(steps, **options)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)) * plan.init_noise_sigma if x is None else x
    return sample(
        lambda x, step: model(x * step.in_scale, step.timestep, doubled=doubled),
        x, plan, noise=lambda: normal(SHAPE, generator=generator),
    )  # fmt: skip


def difference(a, b):
    """Return the largest difference relative to the largest value."""
    scale = max(float(b.abs().max()), 1e-3)
    return float((a - b).abs().max()) / scale
