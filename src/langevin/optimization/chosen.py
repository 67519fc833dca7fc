"""Layers that a processor computes faster in another way, and the step of `optimize` that compiles kernels for them.

A layer is changed by its class alone, and back. Where a call, a layer or the library names a backend of attention, that
is taken.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.native import Kernel
from ..nn import amx, group_norm
from ..nn.attention import Attention
from ..nn.backends import get_attention_backend
from ..nn.compiled import compiled
from ..nn.norm import JoinedGroupNorm
from .layers import ORIGINAL, change, plain, restore


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


class NativeGroupNorm(JoinedGroupNorm):
    """A group norm that a kernel computes, together with a SiLU behind it."""

    def _computed(self, x: Tensor, *, silu: bool) -> Tensor:
        taken = group_norm.fits(x, self.num_groups, self.weight, self.bias) and not plain(self, x)
        if taken and group_norm.KERNEL.ready():
            return group_norm.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=silu)
        return super()._computed(x, silu=silu)


CHOSEN: dict[type[nn.Module], type[nn.Module]] = {Attention: AmxAttention, nn.GroupNorm: NativeGroupNorm}
KERNELS: dict[type, Kernel] = {AmxAttention: amx.KERNEL, NativeGroupNorm: group_norm.KERNEL}
ORIGINAL |= {ours: original for original, ours in CHOSEN.items()}
ORIGINAL[TiledAttention] = Attention


def native(network: nn.Module) -> list[nn.Module]:
    """Let kernels compute what they can of a network on this processor, and return the layers that were changed."""
    here = {kind for kind, ours in CHOSEN.items() if KERNELS[ours].here()}
    found = (layer for layer in network.modules() if type(layer) in here and "forward" not in vars(layer))
    return change(list(found), CHOSEN)


class Native:
    """Has kernels that are compiled here compute norms and, with AMX, attention; see `nn.group_norm` and `nn.amx`."""

    name = "compiled kernels"
    gain = "norm and SiLU in one, and with AMX attention in half the time; the first use on a machine compiles"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network has such layers, in bfloat16 on such a CPU and without a compiler."""
        fits = device.type == "cpu" and dtype == torch.bfloat16 and not compiled(network)
        kinds = {type(layer) for layer in network.modules()} if fits else set()
        return any(KERNELS[ours].here() and kinds & {original, ours} for original, ours in CHOSEN.items())

    def apply(self, network: nn.Module) -> None:
        """Change the layers."""
        native(network)

    def undo(self, network: nn.Module) -> None:
        """Change them back."""
        restore(network.modules(), KERNELS)

    def check(self) -> None:
        """Compile the kernels for this processor and compare them with torch.

        Raises:
            MissingDependencyError: there is no C++ compiler.
            ConfigError: a kernel does not compile, load or compute here.
        """
        for kernel in KERNELS.values():
            if kernel.here():
                kernel.function()
