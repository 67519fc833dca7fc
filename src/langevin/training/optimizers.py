"""Optimizers by name, from the settings of a recipe."""

from __future__ import annotations

from typing import Any

import torch

from ..core.errors import ConfigError, check_choice
from ..core.imports import require
from .settings import Settings

Groups = list[dict[str, Any]]
NAMES = ("adamw", "adafactor", "prodigy")


def optimizer(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer of groups of parameters, each of which has its learning rate.

    AdamW: Loshchilov & Hutter 2019 (1711.05101), in one fused kernel; with `use_8bit_adam` that of bitsandbytes.
    Adafactor: Shazeer & Stern 2018 (1804.04235). Prodigy: Mishchenko & Defazio 2023 (2306.06101), which finds the
    learning rate by itself and wants 1 for it.

    Raises:
        InputError: for an unknown name.
        ConfigError: for options that contradict each other.
        MissingDependencyError: without the package that has it.
    """
    check_choice("optimizer", settings.optimizer, NAMES)
    if settings.use_8bit_adam and settings.optimizer != "adamw":
        raise ConfigError(f"use_8bit_adam is a form of adamw; leave it out with optimizer={settings.optimizer!r}.")
    betas = (settings.adam_beta1, settings.adam_beta2)
    common: dict[str, Any] = {"betas": betas, "eps": settings.adam_epsilon, "weight_decay": settings.adam_weight_decay}
    if settings.use_8bit_adam:
        return require("bitsandbytes", why="8-bit Adam").optim.AdamW8bit(groups, **common)
    if settings.optimizer == "prodigy":
        package = require("prodigyopt", why="The optimizer prodigy")
        return package.Prodigy(groups, safeguard_warmup=True, **common)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, weight_decay=settings.adam_weight_decay)
    fused = all(p.is_floating_point() for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, fused=fused, **common)
