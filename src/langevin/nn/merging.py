"""Token merging (Bolya & Hoffman 2023, 2303.17604): attention over fewer tokens, the most alike of them averaged.

The positions of a feature map are divided into cells of 2 x 2. One position of each cell stays, drawn once for every
size; of the others, those most like a position that stays are averaged into it before the layer, and get its output
after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import InputError

CELL = 2
"""Height and width of a cell."""

LAYERS = ("attention", "cross", "feed_forward")
"""What a block may compute on fewer tokens."""

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TokenMerging:
    """How a transformer block merges its tokens.

    Attributes:
        ratio: share of the tokens that is merged into others, below 0.75.
        layers: what is computed on fewer tokens, of `LAYERS`.
        drawn: draw the position of a cell that stays, by the size alone; its first one otherwise.
    """

    ratio: float = 0.5
    layers: tuple[str, ...] = LAYERS[:1]
    drawn: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 - 1 / CELL**2:
            raise InputError(f"ratio is {self.ratio}; it is a share above 0, and at most {1 - 1 / CELL**2}.")

    def around(self, x: Tensor, size: tuple[int, int]) -> Callable[[str, Layer], Layer]:
        """Return what makes a layer compute on fewer tokens, for tokens (B, height * width, C) of a size.

        It takes the name of a layer and the layer, and returns one that takes and returns all tokens.
        """
        merge, spread = merging(x, size, int(self.ratio * x.shape[1]), self.drawn)

        def fewer(name: str, layer: Layer) -> Layer:
            return (lambda tokens: spread(layer(merge(tokens)))) if name in self.layers else layer

        return fewer


def split(size: tuple[int, int], drawn: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the positions of a feature map that may be merged, and those that stay, one per cell."""
    height, width = size
    rows = torch.arange(height // CELL, device=device)[:, None]
    columns = torch.arange(width // CELL, device=device)[None, :]
    offset = mixed(rows, columns) % CELL**2 if drawn else torch.zeros_like(rows + columns)
    kept = ((rows * CELL + offset // CELL) * width + columns * CELL + offset % CELL).flatten()
    stays = torch.zeros(height * width, dtype=torch.long, device=device).scatter(0, kept, 1)
    order = stays.argsort(stable=True)
    return order[: height * width - kept.numel()], order[height * width - kept.numel() :]


def mixed(rows: Tensor, columns: Tensor) -> Tensor:
    """Return a whole number for every row and column that looks drawn and is always the same (a Murmur finaliser)."""
    number = (rows * 73856093) ^ (columns * 19349663)
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return number ^ (number >> 16)


def merging(x: Tensor, size: tuple[int, int], count: int, drawn: bool = True) -> tuple[Layer, Layer]:
    """Return how tokens (B, N, C) like `x` are merged into fewer, and how those are spread over all positions again.

    Args:
        x: tells which tokens are alike, by their cosine.
        size: height and width of the feature map, N positions in rows.
        count: how many tokens are merged away; those that stay never are.
    """
    movable, kept = split(size, drawn, x.device)
    count = min(count, len(movable))
    unit = F.normalize(x.detach(), dim=-1)
    likeness, partner = (unit[:, movable] @ unit[:, kept].transpose(1, 2)).max(dim=-1)
    order = likeness.argsort(dim=-1, descending=True)
    gone, alone = order[:, :count], order[:, count:]
    target = partner.gather(1, gone)
    home = torch.cat([movable[alone], kept.expand(len(x), -1), movable[gone]], dim=1)

    def pick(tokens: Tensor, where: Tensor) -> Tensor:
        return tokens.gather(1, where[..., None].expand(-1, -1, tokens.shape[-1]))

    def merge(tokens: Tensor) -> Tensor:
        wide = target[..., None].expand(-1, -1, tokens.shape[-1])
        met = tokens[:, kept].scatter_reduce(1, wide, pick(tokens, movable[gone]), reduce="mean")
        return torch.cat([pick(tokens, movable[alone]), met], dim=1)

    def spread(tokens: Tensor) -> Tensor:
        met = tokens[:, alone.shape[1] :]
        everything = torch.cat([tokens, pick(met, target)], dim=1)
        return everything.scatter(1, home[..., None].expand_as(everything), everything)

    return merge, spread
