"""Attention that a processor computes faster by another backend, and the step of `optimize` that compiles a kernel.

A layer is changed by its class alone, and back. Where a call, a layer or the library names a backend, that is taken.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from ..nn import amx
from ..nn.attention import Attention
from ..nn.backends import get_attention_backend
from ..nn.compiled import compiled
from .layers import ORIGINAL, change, restore


class ChosenAttention(Attention):
    """Attention by the backend `by`, where no other is asked for."""

    by: ClassVar[str]

    def _backend(self, asked: str | None) -> str | None:
        chosen = super()._backend(asked)
        return self.by if chosen is None and get_attention_backend() == "sdpa" else chosen


class TiledAttention(ChosenAttention):
    """Attention in tiles of queries."""

    by = "tiled"


class AmxAttention(ChosenAttention):
    """Attention by the kernel for AMX."""

    by = "amx"


ORIGINAL |= dict.fromkeys((TiledAttention, AmxAttention), Attention)


def by_amx(network: nn.Module) -> list[nn.Module]:
    """Let the kernel for AMX compute the attention of a network, and return the layers that were changed."""
    return change([layer for layer in network.modules() if type(layer) is Attention], {Attention: AmxAttention})


class Native:
    """Has attention in bfloat16 computed by a kernel that is compiled here, on CPUs with AMX: see `nn.amx`."""

    name = "AMX attention"
    gain = "a faster exponential; attention over 4096 tokens takes half as long; the first use here compiles"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network has attention, in bfloat16 on such a CPU and without a compiler."""
        fits = device.type == "cpu" and dtype == torch.bfloat16 and amx.supported() and not compiled(network)
        return fits and any(type(layer) in (Attention, AmxAttention) for layer in network.modules())

    def apply(self, network: nn.Module) -> None:
        """Change attention."""
        by_amx(network)

    def undo(self, network: nn.Module) -> None:
        """Change it back."""
        restore(network.modules(), [AmxAttention])

    def check(self) -> None:
        """Compile the kernel and compare it with torch.

        Raises:
            MissingDependencyError: there is no C++ compiler.
            ConfigError: the kernel does not compile, load or compute here.
        """
        amx.kernel()
