"""What adapter files of every dialect are read into, and written from: the tensors of one layer, by algorithm.

A dialect knows names, an algorithm knows mathematics; this is what they tell each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "lora": ("down", "up", "mid", "bias", "magnitude"),
    "loha": ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2", "magnitude"),
    "lokr": ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2", "magnitude"),
    "oft": ("blocks", "rescale"),
    "full": ("diff", "diff_bias"),
}
"""Algorithm -> the names that its tensors may have.

lora: Hu et al. 2021 (2106.09685); `down` (rank, in, ...), `up` (out, rank, ...), `mid` (rank, rank, kernel) for
convolutions after Tucker (LoCon), `bias` (out,) of the up layer, `magnitude` for DoRA (Liu et al. 2024, 2402.09353).
loha, lokr: Hadamard and Kronecker products (Hyeon-Woo et al. 2022, 2108.06098; LyCORIS, 2309.14859). oft: the
skew-symmetric `blocks` (count, size, size) of an orthogonal factor on the output side, or (size, size) when shared
(Qiu et al. 2023, 2306.07280). full: the difference itself.
"""


@dataclass(frozen=True)
class Parts:
    """The tensors of one layer of an adapter.

    Attributes:
        algorithm: a key of `ALGORITHMS`.
        tensors: by the names of `ALGORITHMS`.
        alpha: numerator of the scale alpha / rank; None means that the scale is 1. For oft: the constraint.
        stored: the names under which the file holds them, for reports; empty for parts made here.
    """

    algorithm: str
    tensors: Mapping[str, Tensor]
    alpha: float | None = None
    stored: tuple[str, ...] = field(default=(), compare=False)

    def map(self, change: Callable[[Tensor], Tensor]) -> Parts:
        """Return the parts with every tensor changed."""
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


Adapter = dict[str, dict[str, Parts]]
"""Component ("unet", "text_encoder", "text_encoder_2", "transformer", ...) -> path of the layer in it -> parts."""
