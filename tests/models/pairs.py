"""The same network twice, the peer's and ours, with the same random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def shake(model: nn.Module) -> None:
    """Give every parameter a random value, norms and biases included, so that nothing is trivially equal."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.normal_(std=0.3)
                if name.endswith("weight"):
                    value.add_(1)


def pair(peer: type, ours: type, config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Build both classes from one configuration and copy the peer's weights into ours (strictly)."""
    torch.manual_seed(0)
    theirs = peer(**config).eval()
    shake(theirs)
    mine = ours(**config).eval()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the size of the values once that exceeds one."""
    return ((a - b).abs().max() / max(1.0, a.abs().max().item())).item()
