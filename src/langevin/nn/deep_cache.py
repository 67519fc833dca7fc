"""DeepCache (Ma et al. 2023, 2312.00858): the deep part of a UNet says much the same at successive steps.

A whole pass keeps the features that enter the outermost layers of the way up. The passes after it compute those layers
and what they read of the way down, and take the features as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class DeepFeatures:
    """What the passes of one batch share.

    Attributes:
        layers: layers of the way up, counted from the output, that every pass computes.
        kept: what enters them, (B, C, H, W), as of the last whole pass; None asks for a whole pass.
    """

    layers: int
    kept: Tensor | None = None

    def through(
        self,
        block: Callable[..., Tensor],
        x: Tensor,
        skips: Sequence[Tensor],
        given: Any,
        size: tuple[int, int] | None,
        *,
        first: int,
    ) -> Tensor:
        """Return the output of the block of the way up in which the kept features enter, before its layer `first`.

        The other arguments are those of the block.
        """
        if self.kept is None:
            self.kept = block(x, skips, given, stop=first) if first else x
        return block(self.kept, skips, given, size, first)
