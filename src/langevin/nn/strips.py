"""A feature map held as horizontal strips, and what can be done to it as if it were whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..core.errors import InputError

Layer = Callable[[Tensor], Tensor]


class Strips:
    """The rows of a feature map (B, C, H, W) from top to bottom, in strips (B, C, rows, W).

    device: where strips are computed. storage: where they wait; `strips[i]` brings one to the device, `strips[i] = x`
    stores one. Every strip but the last has the same number of rows.
    """

    def __init__(self, device: torch.device, storage: torch.device | str | None = None) -> None:
        self.device = device
        self.storage = device if storage is None else torch.device(storage)
        self.parts: list[Tensor] = []

    @classmethod
    def split(cls, x: Tensor, rows: int, storage: torch.device | str | None = None) -> Strips:
        """Return x (B, C, H, W) in strips of `rows` rows; the last may have fewer."""
        strips = cls(x.device, storage)
        for part in x.split(rows, dim=-2):
            strips.append(part)
        return strips

    def whole(self) -> Tensor:
        """Return the feature map in one piece, on the device."""
        return torch.cat([part.to(self.device) for part in self.parts], dim=-2)

    def append(self, strip: Tensor) -> None:
        """Store a further strip below the others."""
        self.parts.append(strip.to(self.storage))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Tensor:
        return self.parts[index].to(self.device)

    def __setitem__(self, index: int, strip: Tensor) -> None:
        self.parts[index] = strip.to(self.storage)

    def map(self, layer: Layer, *, reach: int = 0, scale: Fraction | int = 1) -> Iterator[Tensor]:
        """Yield what `layer` would have made of the rows of every strip, had it been given the whole.

        reach: rows above and below on which a row of the output depends. The layer is given that many rows of the
        neighbours, and what it makes of them is cut off; at the edges of the whole its own padding acts. scale: rows of
        the output over those of the input; `reach * scale` is whole. A strip may be replaced once its result has come,
        so that a map and the one that follows from it need not both be complete. Raises InputError when a strip has
        fewer than `reach` rows.
        """
        heights = [part.shape[-2] for part in self.parts]
        if min(heights[:-1], default=reach) < reach:
            raise InputError(f"strips of {min(heights[:-1])} rows are too low for a layer that reaches over {reach}")
        above = self.parts[0].narrow(-2, 0, 0).to(self.device)
        for index, height in enumerate(heights):
            window = self[index]
            kept = min(reach, height)
            next_above = window.narrow(-2, height - kept, kept).clone()
            if reach:
                below = self.parts[min(index + 1, len(self) - 1)]
                rows = min(reach, below.shape[-2]) if index + 1 < len(self) else 0
                window = torch.cat([above, window, below.narrow(-2, 0, rows).to(self.device)], dim=-2)
            yield layer(window).narrow(-2, int(above.shape[-2] * scale), int(height * scale))
            above = next_above

    def replace(self, layer: Layer, *, reach: int = 0, scale: Fraction | int = 1) -> None:
        """Put what `map` yields in the place of the strips; one that has no rows left is dropped."""
        for index, result in enumerate(self.map(layer, reach=reach, scale=scale)):
            self[index] = result
        self.parts = [part for part in self.parts if part.shape[-2]]

    def group_norm(self, norm: nn.GroupNorm) -> Layer:
        """Return `norm` with mean and variance taken over all strips together, for use on any part of them.

        Statistics are taken of each strip in at least float32 and combined by numbers of rows (Chan et al. 1979), so
        that the function equals `norm` of the whole up to rounding.
        """
        shares = [part.shape[-2] / sum(part.shape[-2] for part in self.parts) for part in self.parts]
        each = [group_statistics(self[index], norm.num_groups) for index in range(len(self))]
        mean = torch.stack([share * m for share, (m, _) in zip(shares, each, strict=True)]).sum(0)
        spreads = [share * (v + (m - mean).square()) for share, (m, v) in zip(shares, each, strict=True)]
        variance = torch.stack(spreads).sum(0)
        per_group = norm.num_channels // norm.num_groups
        gain = torch.rsqrt(variance + norm.eps).repeat_interleave(per_group, dim=1) * norm.weight.to(mean.dtype)
        offset = norm.bias.to(mean.dtype) - mean.repeat_interleave(per_group, dim=1) * gain
        gain, offset = (each.unflatten(1, (-1, 1, 1)) for each in (gain, offset))
        return lambda x: torch.addcmul(offset, x.to(gain.dtype), gain).to(x.dtype)


def group_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance, each (B, groups), of the groups of channels of x (B, C, H, W), in at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(x.unflatten(1, (groups, -1)), dim=(2, 3, 4), correction=0)
    return mean, variance
