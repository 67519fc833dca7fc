"""One call of a pipeline of this library and of the peer's over the same components, and how far they are apart."""

from __future__ import annotations

import diffusers
import numpy as np
import torch

import langevin
from tests.pipelines import tiny

PROMPTS = ["a cat", "a big dog"]


def twins(name: str, peer, ours, **more):
    """Return the pipeline `name` of the peer and of this library over the components of two pipelines.

    Args:
        more: components by name as (the peer's, ours).
    """
    pipes = []
    for k, (library, pipe) in enumerate(((diffusers, peer), (langevin, ours))):
        cls = getattr(library, name)
        known = tiny.constructor(cls)
        parts = {part: value for part, value in pipe.components.items() if part in known}
        parts |= {part: pair[k] for part, pair in more.items()}
        parts |= {"requires_safety_checker": False} if "requires_safety_checker" in known else {}
        built = cls(**{part: value for part, value in parts.items() if part in known})
        built.set_progress_bar_config(disable=True)
        pipes.append(built)
    return tuple(pipes)


def results(pipes, name: str | None = "DDIMScheduler", *, seeds=7, scheduler: dict | None = None, ours=None, **call):
    """Return what both pipelines make of one call, as arrays.

    Args:
        name: scheduler of both; None leaves theirs.
        seeds: one for the call, or one per picture.
        ours: further arguments of this library's call, which the peer does not know.
    """
    made = []
    for library, pipe, more in zip((diffusers, langevin), pipes, ({}, ours or {}), strict=True):
        if name is not None:
            pipe.scheduler = tiny.scheduler(library, name, **(scheduler or {}))
        many = isinstance(seeds, list)
        generators = [torch.Generator().manual_seed(s) for s in seeds] if many else torch.Generator().manual_seed(seeds)
        settings = {"prompt": PROMPTS, "num_inference_steps": 4, "output_type": "np", **call}
        settings = {name: value for name, value in settings.items() if value is not ...}
        images = pipe(generator=generators, **settings, **more).images
        if isinstance(images, list):
            images = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
        made.append(images.numpy() if isinstance(images, torch.Tensor) else images)
    assert made[0].shape == made[1].shape
    return made


def difference(pipes, name: str | None = "DDIMScheduler", **call) -> float:
    """Return the largest difference of the pictures in [0, 1] of one call; see `results`."""
    theirs, ours = results(pipes, name, **call)
    return float(np.abs(theirs - ours).max())
