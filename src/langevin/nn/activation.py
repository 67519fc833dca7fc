"""Activation functions by their configuration names."""

from __future__ import annotations

from torch import nn

from ..core.errors import ConfigError, did_you_mean

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


def activation(name: str) -> nn.Module:
    """Return a fresh activation module for a configuration name such as `"silu"`.

    Raises ConfigError for an unknown name.
    """
    kind = ACTIVATIONS.get(name.casefold())
    if kind is None:
        raise ConfigError(f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)}")
    return kind()
