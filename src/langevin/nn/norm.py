"""Normalisation steered by an embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def activated(norm: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """Return `activation(norm(x))`, in the way of the norm if it has one for both.

    Without gradients and hooks a SiLU takes the place of what it is applied to, which saves memory of that size.
    """
    both = getattr(type(norm), "activated", None)
    if both is not None:
        return both(norm, x, activation)
    plain = type(norm) is nn.GroupNorm and type(activation) is nn.SiLU and not torch.is_grad_enabled()
    if plain and not (hooked(norm) or hooked(activation)):
        return F.silu(norm(x), inplace=True)
    return activation(norm(x))


def added(conv: nn.Module, x: Tensor, straight: Tensor, *, own: bool = False) -> Tensor:
    """Return `straight + conv(x)`, in the way of `conv` if it has one; without gradients no memory is taken for both.

    Args:
        own: `straight` may be overwritten.
    """
    both = getattr(conv, "added", None)
    found = None if both is None else both(x, straight, own)
    if found is not None:
        return found
    found = conv(x)
    kept = torch.is_grad_enabled() or hooked(conv) or found.dtype != straight.dtype
    return straight + found if kept else found.add_(straight)


class JoinedGroupNorm(nn.GroupNorm):
    """A group norm that something else than torch may compute, together with a SiLU behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, ...)."""
        return self._computed(x, silu=False)

    def activated(self, x: Tensor, activation: nn.Module) -> Tensor:
        """Return the activation of the normalised x (B, C, ...)."""
        if type(activation) is not nn.SiLU or hooked(activation) or hooked(self):
            return activation(self(x))
        return self._computed(x, silu=True)

    def _computed(self, x: Tensor, *, silu: bool) -> Tensor:
        """Return the norm of x, by torch, and its SiLU if asked."""
        normalised = super().forward(x)
        return F.silu(normalised, inplace=not torch.is_grad_enabled()) if silu else normalised


def hooked(layer: nn.Module) -> bool:
    """Tell whether calling a layer does more than its class says."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def scale_shift(normalised: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Return `normalised * (1 + scale) + shift` (FiLM, Perez et al. 2018; adaptive group norm, Dhariwal & Nichol 2021).

    normalised: (B, C, ...). scale_and_shift: (B, 2C, ...) with the scale in the first half of dimension 1.
    """
    scale, shift = scale_and_shift.chunk(2, dim=1)
    return normalised * (1 + scale) + shift


class AdaGroupNorm(nn.Module):
    """Group norm without own parameters; the time embedding gives scale and shift (Dhariwal & Nichol 2021).

    forward: x (B, channels, H, W) and embedding (B, embedding_dim) to (B, channels, H, W).
    """

    def __init__(self, embedding_dim: int, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.linear = nn.Linear(embedding_dim, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return scale_shift(F.group_norm(x, self.groups, eps=self.eps), self.linear(embedding)[:, :, None, None])
