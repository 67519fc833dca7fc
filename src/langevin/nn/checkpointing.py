"""Gradient checkpointing: recompute a block in the backward pass instead of keeping its activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `block` without keeping its activations (Chen et al. 2016)."""
    return checkpoint(block, *args, use_reentrant=False, **kwargs)


def run_block(owner: nn.Module, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `block`; where `owner.gradient_checkpointing` is set and gradients are recorded, recompute it later.

    `owner` is the module whose class sets `gradient_checkpointing = False`; `ModelMixin.enable_gradient_checkpointing`
    finds it by that attribute and may also place another function at `owner.gradient_checkpointing_function`.
    """
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return getattr(owner, "gradient_checkpointing_function", recomputed)(block, *args, **kwargs)
    return block(*args, **kwargs)
