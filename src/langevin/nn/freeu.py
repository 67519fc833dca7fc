"""FreeU (Si et al. 2023, 2309.11497): on the way up a UNet listens more to its backbone and less to what was kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import InputError

REACH = 1
"""Frequencies on either side of the lowest one that are scaled."""


@dataclass(frozen=True)
class FreeU:
    """What one block does before it joins its features and those kept on the way down.

    Attributes:
        backbone: factor of the first half of the features' channels; above 1 strengthens them.
        skip: factor of the low frequencies of what was kept; below 1 weakens them.
    """

    backbone: float
    skip: float

    def __post_init__(self) -> None:
        for name in ("backbone", "skip"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise InputError(f"FreeU's factors are numbers from 0 on, about 0.2 to 1.6; this one is {value!r}.")

    def __call__(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the kept ones, (B, C, H, W) each, as they are to be joined."""
        half = x.shape[1] // 2
        return torch.cat([x[:, :half] * self.backbone, x[:, half:]], dim=1), low_frequencies(kept, self.skip)


def low_frequencies(x: Tensor, factor: float) -> Tensor:
    """Return features (B, C, H, W) whose lowest frequencies are multiplied by a factor."""
    height, width = x.shape[-2:]
    found = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    rows, columns = (torch.arange(size, device=x.device) - size // 2 for size in (height, width))
    low = ((rows >= -REACH) & (rows < REACH))[:, None] & ((columns >= -REACH) & (columns < REACH))
    found = torch.where(low, found * factor, found)
    return torch.fft.ifftn(torch.fft.ifftshift(found, dim=(-2, -1)), dim=(-2, -1)).real.to(x.dtype)
