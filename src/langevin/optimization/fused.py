"""Layers that Triton kernels compute on CUDA devices: group norms, a SiLU behind them, and gated GELUs.

A layer is changed by its class alone, and back; nothing is added to the network. Under gradients, autocast, tracing and
compilation, on other devices, and for types and orders of dimensions that the kernels do not take, changed layers
compute as they did. Hooks on a norm and on an activation are called: between two layers with hooks nothing is fused.

Gain: not measured, for want of a GPU; `python -m benchmarks.kernels` measures it. See `kernels`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.imports import require
from ..nn.compiled import compiled, looked_through
from ..nn.norm import JoinedGroupNorm
from ..nn.transformer import Expansion, gated_gelu

DEVICE = "cuda"
"""The kind of device that the kernels run on."""
TYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 2**31
"""Kernels count the numbers of a row of the batch in 32 bits."""
CLOSE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a device's results may be from torch's in `check_kernels`."""


def fusable(x: Tensor, *weights: Tensor | None) -> bool:
    """Tell whether kernels can compute a layer of `x` (B, ...) with these weights."""
    if looked_through() or torch.is_autocast_enabled(DEVICE):
        return False
    if x.device.type != DEVICE or type(x) is not Tensor or x.dtype not in TYPES or not 0 < x.numel() < MOST * len(x):
        return False
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, *weights)):
        return False
    where = (nn.Parameter, x.dtype, x.device)
    return all(w is not None and (type(w), w.dtype, w.device) == where for w in weights)


class FusedGroupNorm(JoinedGroupNorm):
    """A group norm that a kernel computes, together with a SiLU behind it."""

    def _computed(self, x: Tensor, *, silu: bool) -> Tensor:
        if x.dim() > 2 and fusable(x, self.weight, self.bias):
            from . import kernels

            if kernels.channels_last(x) is not None:
                return kernels.group_norm(x, self.num_groups, self.weight, self.bias, eps=self.eps, silu=silu)
        return super()._computed(x, silu=silu)


class FusedExpansion(Expansion):
    """The first half of a feed-forward network with its gated GELU in one pass."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, L, dim) to (B, L, inner)."""
        projected = self.proj(hidden_states)
        if self.activate is gated_gelu and fusable(projected) and projected.is_contiguous():
            from . import kernels

            return kernels.gated_gelu(projected)
        return self.activate(projected)


FUSED: dict[type[nn.Module], type[nn.Module]] = {nn.GroupNorm: FusedGroupNorm, Expansion: FusedExpansion}
ORIGINAL = {fused: original for original, fused in FUSED.items()}


def found(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a network that can be fused or are."""
    kinds = (layer for layer in network.modules() if type(layer) in FUSED or type(layer) in ORIGINAL)
    return [layer for layer in kinds if "forward" not in vars(layer)]


class Fused:
    """Lets Triton kernels compute group norms and gated GELUs: a step of `optimize` on CUDA devices."""

    name = "fused kernels"
    gain = "norm and SiLU, and gated GELU, in one pass over memory each; the first calls compile; not measured"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network has such layers and computes on a CUDA device, without a compiler."""
        return device.type == DEVICE and dtype in TYPES and not compiled(network) and bool(found(network))

    def apply(self, network: nn.Module) -> None:
        """Change the layers."""
        for layer in found(network):
            layer.__class__ = FUSED.get(type(layer), type(layer))

    def undo(self, network: nn.Module) -> None:
        """Change them back."""
        for layer in network.modules():
            layer.__class__ = ORIGINAL.get(type(layer), type(layer))

    def check(self) -> None:
        """As `check_kernels`."""
        check_kernels()


@torch.no_grad()
def check_kernels() -> None:
    """Compare the kernels with torch on the device.

    Raises:
        MissingDependencyError: without Triton.
        ConfigError: where kernels do not compile, or give something else.
    """
    require("triton", why="`kernels=True`", extra="kernels")
    from . import kernels

    for dtype, near in CLOSE.items():
        x = torch.linspace(-3, 300, 2 * 24 * 20 * 20).sin().view(2, 24, 20, 20).to(DEVICE, dtype)
        norm = nn.GroupNorm(2, 24, device=DEVICE, dtype=dtype)
        wanted = [F.silu(norm(x)), F.silu(norm(x)), gated_gelu(x.flatten(2))]
        given: dict[str, Any] = {"groups": 2, "weight": norm.weight, "bias": norm.bias, "eps": norm.eps, "silu": True}
        try:
            made = [kernels.group_norm(y, **given) for y in (x, x.contiguous(memory_format=torch.channels_last))]
            made.append(kernels.gated_gelu(x.flatten(2)))
            same = all(torch.allclose(*pair, atol=near, rtol=near) for pair in zip(made, wanted, strict=True))
        except Exception as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(f"Triton kernels do not run here ({why}); leave `kernels` out.") from error
        if not same:
            raise ConfigError(f"Triton kernels compute something else in {dtype} here; leave `kernels` out.")
