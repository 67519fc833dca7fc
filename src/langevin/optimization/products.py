"""Linear layers, feed-forward networks and attention whose products oneDNN computes, changed by class as in `layers`.

A product adds its bias and applies what follows before its result is written: the bias of a linear layer, which torch
copies into the result first in half precision, and the gate of a feed-forward network. They are for processors where
torch hands products to a slower library, and for bfloat16; see `processor.handed` and `processor.joined`.

Gain on two cores of an AMD processor with AVX512-BF16, with attention in tiles: a step with guidance at the size of
Stable Diffusion 1.5 takes 2.4 in place of 3.5 s in bfloat16, convolutions packed in both (`python -m benchmarks --only
step-sd15 --level L1 --dtype bfloat16`). On two cores with AMX, without tiles, it takes 1.60 in place of 1.77 s. Loss:
results differ by rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.attention import Attention
from ..nn.compiled import looked_through
from ..nn.tiles import PLAIN
from ..nn.transformer import Expansion, gated_gelu
from . import processor
from .chosen import TiledAttention
from .layers import ORIGINAL, change, ordinary, plain

GELU: tuple[str, list, str] = ("gelu", [], "none")


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Map (..., in_features) to (..., out_features) by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *PLAIN)


def multiplies(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether oneDNN is to compute the product of a linear layer."""
    return x.dtype in processor.JOINED and x.numel() > 0 and not looked_through() and not plain(layer, x)


class DirectLinear(nn.Linear):
    """A linear layer whose product and bias are one call of oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return product(x, self.weight, self.bias) if multiplies(self, x) else super().forward(x)


class DirectExpansion(Expansion):
    """The first half of a feed-forward network, which multiplies by its gate while it computes the values."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, L, dim) to (B, L, inner)."""
        layer = self.proj
        if self.activate is not gated_gelu or type(layer) is not DirectLinear or heard(layer):
            return super().forward(hidden_states)
        x = prepared(layer, hidden_states)
        if not multiplies(layer, x):
            return self.activate(layer.forward(x))
        half = layer.out_features // 2
        bias, opening = (None, None) if layer.bias is None else (layer.bias[:half], layer.bias[half:])
        gate = torch.ops.mkldnn._linear_pointwise(x, layer.weight[half:], opening, *GELU)
        return torch.ops.mkldnn._linear_pointwise.binary(x, gate, layer.weight[:half], bias, "mul")


def heard(layer: nn.Module) -> bool:
    """Tell whether something waits for the result of a layer, or computes it otherwise."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks_with_kwargs or "forward" in vars(layer))


def prepared(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the input of a layer after the hooks before its forward, such as those that bring weights."""
    for hook in layer._forward_pre_hooks.values():
        given = hook(layer, (x,))
        x = x if given is None else given[0] if isinstance(given, tuple) else given
    return x


QUICK: dict[type, type] = {nn.Linear: DirectLinear, Expansion: DirectExpansion, Attention: TiledAttention}
ORIGINAL |= {ours: original for original, ours in QUICK.items()}


def quicken(network: nn.Module) -> list[nn.Module]:
    """Let oneDNN compute the products of a network, and return the layers that were changed.

    Attention is left as it is where torch does not hand its products elsewhere.
    """
    kinds = set(QUICK) if processor.HANDED else set(QUICK) - {Attention}
    return change([m for m in network.modules() if type(m) in kinds and own(m)], QUICK)


def own(layer: nn.Module) -> bool:
    """Tell whether a layer computes by the forward of its class, with an ordinary weight if it has one."""
    return ordinary(layer) if isinstance(layer, nn.Linear) else "forward" not in vars(layer)
