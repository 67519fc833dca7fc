"""One registry row per public class, and every row leads to its class."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter

import pytest

import langevin
from langevin.core.config import ConfigMixin
from langevin.registry import ROWS
from tests.architecture.tree import modules

PUBLIC = ("models", "schedulers", "pipelines")
"""Packages whose configurable classes are public, unless their name starts with an underscore."""


SHARED = {
    "TrainedScheduler": "base of the schedulers that are defined on a table of training timesteps",
    "GridNoising": "base of the schedulers that add noise at the levels of their grid",
    "DrawingScheduler": "base of the schedulers whose step takes a generator alone",
    "ExplodingScheduler": "base of the schedulers whose samples keep their scale",
    "EDMScheduler": "base of the schedulers of preconditioned networks, without a training table",
    "ScoreScheduler": "base of the schedulers in continuous time, from 1 to almost 0",
    "ChurningScheduler": "base of the schedulers whose step may raise the noise first",
    "FlowMatchScheduler": "base of the schedulers on straight paths",
    "LatentPipeline": "base of the pipelines that denoise latents",
    "StableDiffusionControlNetFamily": "base of the Stable Diffusion pipelines with ControlNets",
    "StableDiffusionFamily": "base of the Stable Diffusion pipelines of all tasks",
    "StableDiffusionXLControlNetPictureFamily": "base of those with ControlNets that change a picture",
    "StableDiffusionXLFamily": "base of the Stable Diffusion XL pipelines of all tasks",
    "StableDiffusionXLPictureFamily": "base of the Stable Diffusion XL pipelines that change a picture",
    "TwoStageScheduler": "base of the schedulers that ask the network twice per step",
    "LogSNRScheduler": "base of the schedulers whose solvers step in the log signal-to-noise ratio",
}
"""Classes that others are built on and nobody loads by name, with what they are for."""


def public_classes() -> list[type]:
    found = []
    for source in modules():
        parts = source.name.split(".")
        if len(parts) > 1 and parts[1] in PUBLIC:
            home = importlib.import_module(source.name)
            classes = [c for _, c in inspect.getmembers(home, inspect.isclass) if c.__module__ == source.name]
            found += [c for c in classes if issubclass(c, ConfigMixin) and not c.__name__.startswith("_")]
    return found


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []


def test_every_public_class_has_its_row() -> None:
    rows = {(row.name, f"langevin.{row.module}") for row in ROWS}
    missing = {c.__name__ for c in public_classes() if (c.__name__, c.__module__) not in rows}
    assert sorted(missing - set(SHARED)) == []
    assert sorted(set(SHARED) - missing) == [], "these are not needed any more"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_leads_to_its_class(row) -> None:
    value = getattr(langevin, row.name)
    if inspect.isclass(value):
        assert value.__module__ == f"langevin.{row.module}", "the row must name the class's own module"
        assert value.__doc__, "a public class needs a docstring"


def test_dir_lists_the_public_names() -> None:
    assert {row.name for row in ROWS} <= set(dir(langevin))
