"""The mathematics of adapters: what each algorithm adds to a layer, from the tensors of one layer and back.

With W the layer's weight and x its input, an adapter of weight s gives (W + s D) x, where D = `dense(W)`. D does not
depend on s, also where the algorithm itself is not linear in W (DoRA, OFT): half of a weight is half of the change,
and 0 is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..weights.dialects.parts import ALGORITHMS, Parts
from .guest import Unlisted
from .layers import Shape, applied, on_channels, pointwise, ungrouped

Shapes = Mapping[str, Shape]


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in its own dtype if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Delta(Unlisted):
    """What one adapter adds to one layer. The parameters are the tensors of its `Parts`, in the layer's own layout.

    Attributes:
        scale: weight times `unit`, a float32 scalar on the device; a compiled graph reads it anew at every call.
        stored: the shapes that the tensors have in a file.
    """

    algorithm: ClassVar[str]
    required: ClassVar[tuple[tuple[str, ...], ...]]
    """Sets of names of which one has to be complete."""
    padded: ClassVar[dict[str, tuple[int, ...]]] = {}
    """Name -> the axes that are as long as the rank."""
    needs_weight: ClassVar[bool] = False
    scale: Tensor

    def __init__(self, tensors: dict[str, Tensor], alpha: float | None, shape: Shape, rank: int, stored: Shapes):
        super().__init__()
        self.alpha, self.shape, self.rank, self.stored = alpha, shape, rank, dict(stored)
        for name in ALGORITHMS[self.algorithm]:
            tensor = tensors.get(name)
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))
        device = next(iter(tensors.values())).device
        self.register_buffer("scale", torch.tensor(self.unit, dtype=torch.float32, device=device), persistent=False)
        self.weight = 1.0

    @property
    def unit(self) -> float:
        """The scale at weight 1: alpha / rank, or 1."""
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    def _apply(self, fn: Callable, recurse: bool = True):
        """Move or cast the tensors; the scale keeps its precision."""
        super()._apply(fn, recurse)
        self.scale = torch.tensor(self.weight * self.unit, dtype=torch.float32, device=self.scale.device)
        return self

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The tensors by name, in the layer's layout."""
        return {name: tensor for name, tensor in self._parameters.items() if tensor is not None}

    def weigh(self, weight: float) -> None:
        """Set the adapter's weight in this layer, in place."""
        if weight != self.weight:
            self.weight = weight
            self.scale.fill_(weight * self.unit)

    def parts(self) -> Parts:
        """Return what a file of this adapter holds for the layer: the present values, in the stored shapes."""
        tensors = {}
        for name, tensor in self.tensors.items():
            value = tensor.detach()
            for axis in self.padded.get(name, ()):
                value = value.narrow(axis, 0, self.rank)
            tensors[name] = value.reshape(self.stored[name]).contiguous()
        return Parts(self.algorithm, tensors, self.alpha)

    def take(self, other: Delta) -> bool:
        """Take over the values of another delta in place, if it has the same tensors in the same shapes.

        Nothing is allocated, so that what was compiled or captured with the present tensors stays valid. The dtype
        stays that of the present tensors.
        """
        mine, theirs = self.tensors, other.tensors
        if type(self) is not type(other) or {n: t.shape for n, t in mine.items()} != {
            n: t.shape for n, t in theirs.items()
        }:
            return False
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(theirs[name])
        self._become(other)
        return True

    def clear(self) -> bool:
        """Make the delta add nothing without changing its shapes, if it can."""
        if not self.padded:
            return False
        with torch.no_grad():
            for tensor in self.tensors.values():
                tensor.zero_()
        return True

    def _become(self, other: Delta) -> None:
        """Take over what is not a tensor."""
        self.alpha, self.rank, self.stored = other.alpha, other.rank, other.stored
        self.scale.fill_(self.weight * self.unit)

    @staticmethod
    def wanted(shapes: Shapes, shape: Shape) -> tuple[dict[str, Shape], int]:
        """Return the shapes that the tensors must have for a weight of this shape, and the rank."""
        raise NotImplementedError

    def dense(self, weight: Tensor | None = None) -> Tensor:
        """Return the difference of the layer's weight at weight 1, in float32 or wider."""
        return self.product() * self.unit

    def product(self) -> Tensor:
        """Return the difference before `unit`, in the shape of the weight."""
        raise NotImplementedError

    def dense_bias(self) -> Tensor | None:
        """Return the difference of the layer's bias at weight 1, or None."""
        return None

    def accumulate_(self, total: Tensor, weight: Tensor, scale: float) -> None:
        """Add `scale` times the dense difference to `total`; `weight` is the layer's own."""
        total.add_(self.dense(weight), alpha=scale)

    def forward(self, x: Tensor, layer: nn.Module, weight: Tensor | None, output: Tensor | None) -> Tensor:
        """Return what is added to the layer's output.

        Args:
            weight: the layer's own weight, without fused adapters.
            output: what that weight gives for `x`, bias included; None if it is not known.
        """
        return applied(layer, x, self.product()) * self.scale


class LoRA(Delta):
    """D = alpha / rank * up down (Hu et al. 2021, eq. 3); in convolutions `mid` carries the kernel (LoCon)."""

    algorithm = "lora"
    required = (("down", "up"),)
    padded: ClassVar[dict[str, tuple[int, ...]]] = {"down": (0,), "up": (1,), "mid": (0, 1)}
    down: Tensor
    up: Tensor
    mid: Tensor | None
    bias: Tensor | None

    @staticmethod
    def wanted(shapes: Shapes, shape: Shape) -> tuple[dict[str, Shape], int]:
        """Return the shapes for the layout of the layer; the rank is that of `down`."""
        out, features, *kernel = shape
        rank, point = shapes["down"][0], (1,) * len(kernel)
        mid = {"mid": (rank, rank, *kernel)} if "mid" in shapes else {}
        down = (rank, features, *(point if mid else kernel))
        return {"down": down, "up": (out, rank, *point), "bias": (out,), **mid}, rank

    def product(self) -> Tensor:
        """Return up down, or up mid down."""
        up, down = wide(self.up).flatten(1), wide(self.down).flatten(1)
        if self.mid is None:
            return (up @ down).reshape(self.shape)
        return torch.einsum("or,rs...,si->oi...", up, wide(self.mid), down)

    def dense_bias(self) -> Tensor | None:
        """Return the difference of the bias."""
        return None if self.bias is None else wide(self.bias) * self.unit

    def accumulate_(self, total: Tensor, weight: Tensor, scale: float) -> None:
        """Add the product without a matrix of its own."""
        if self.mid is not None or not total.is_contiguous():
            return super().accumulate_(total, weight, scale)
        up, down = (tensor.detach().flatten(1).to(total.dtype) for tensor in (self.up, self.down))
        total.view(len(total), -1).addmm_(up, down, alpha=scale * self.unit)

    def forward(self, x: Tensor, layer: nn.Module, weight: Tensor | None, output: Tensor | None) -> Tensor:
        """Return what the two or three small layers give."""
        if not ungrouped(layer):
            y = applied(layer, x, self.product()) * self.scale
        elif len(self.shape) == 2:
            y = self.scaled(F.linear(x, self.down.to(x.dtype)))
            y = y if self.mid is None else F.linear(y, self.mid.to(x.dtype))
            y = F.linear(y, self.up.to(x.dtype))
        else:
            if self.mid is None:
                y = applied(layer, x, self.down)
            else:
                y = applied(layer, pointwise(x, self.down.to(x.dtype)), self.mid)
            y = pointwise(self.scaled(y), self.up.to(x.dtype))
        return y if self.bias is None else y + on_channels(layer, self.bias, y) * self.scale

    def scaled(self, y: Tensor) -> Tensor:
        """Return `y` times the scale: itself while the delta is trained at a scale of 1, which saves two products."""
        return y if self.down.requires_grad and self.weight * self.unit == 1 else y * self.scale


class LoHa(Delta):
    """D = alpha / rank * (w1_a w1_b) o (w2_a w2_b), elementwise (Hyeon-Woo et al. 2022, eq. 2 and proposition 3)."""

    algorithm = "loha"
    required = (("w1_a", "w1_b", "w2_a", "w2_b"),)

    @staticmethod
    def wanted(shapes: Shapes, shape: Shape) -> tuple[dict[str, Shape], int]:
        """Return the shapes; with `t1` and `t2` both factors of a product have the rank first."""
        out, features, *kernel = shape
        found: dict[str, Shape] = {}
        for i in "12":
            rank = shapes[f"w{i}_b"][0]
            if f"t{i}" in shapes:
                found |= {f"t{i}": (rank, rank, *kernel), f"w{i}_a": (rank, out), f"w{i}_b": (rank, features)}
            else:
                found |= {f"w{i}_a": (out, rank), f"w{i}_b": (rank, features * math.prod(kernel))}
        return found, shapes["w1_b"][0]

    def product(self) -> Tensor:
        """Return the Hadamard product of two products."""
        own = self.tensors
        first, second = (tucker(own.get(f"t{i}"), own[f"w{i}_a"], own[f"w{i}_b"], self.shape) for i in "12")
        return first * second


class LoKr(Delta):
    """D = alpha / rank * w1 (x) w2, a Kronecker product whose factors may be products themselves (2309.14859, sec. 3).

    When neither factor is a product there is no rank and the scale is 1.
    """

    algorithm = "lokr"
    required = (("w1", "w2"), ("w1", "w2_a", "w2_b"), ("w1_a", "w1_b", "w2"), ("w1_a", "w1_b", "w2_a", "w2_b"))

    @staticmethod
    def wanted(shapes: Shapes, shape: Shape) -> tuple[dict[str, Shape], int]:
        """Return the shapes; those of the first factor decide those of the second."""
        out, features, *kernel = shape
        found: dict[str, Shape] = {}
        rank = 0
        if "w1" in shapes:
            rows, columns = shapes["w1"][:2]
            found["w1"] = (rows, columns)
        else:
            rows, rank, columns = shapes["w1_a"][0], shapes["w1_b"][0], shapes["w1_b"][1]
            found |= {"w1_a": (rows, rank), "w1_b": (rank, columns)}
        if out % rows or features % columns:
            raise ConfigError(f"the first factor has the shape ({rows}, {columns}), which does not divide {shape}")
        c, d = out // rows, features // columns
        if "w2" in shapes:
            return {**found, "w2": (c, d, *kernel)}, rank
        r = shapes["w2_b"][0]
        if "t2" in shapes:
            found |= {"t2": (r, r, *kernel), "w2_a": (r, c), "w2_b": (r, d)}
        else:
            found |= {"w2_a": (c, r), "w2_b": (r, d * math.prod(kernel))}
        return found, rank or r

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return w1 (a, b) and w2 (c, d, kernel)."""
        own = self.tensors
        first = wide(own["w1"]) if "w1" in own else wide(own["w1_a"]) @ wide(own["w1_b"])
        if "w2" in own:
            return first, wide(own["w2"])
        shape = (self.shape[0] // first.shape[0], self.shape[1] // first.shape[1], *self.shape[2:])
        return first, tucker(own.get("t2"), own["w2_a"], own["w2_b"], shape)

    def product(self) -> Tensor:
        """Return the Kronecker product."""
        first, second = self.factors()
        return torch.kron(first.reshape(*first.shape, *(1 for _ in second.shape[2:])), second.contiguous())

    def forward(self, x: Tensor, layer: nn.Module, weight: Tensor | None, output: Tensor | None) -> Tensor:
        """Return w1 (w2 X) for the input X as a matrix of blocks, so that the product is never made."""
        if not ungrouped(layer):
            return super().forward(x, layer, weight, output)
        first, second = (factor.to(x.dtype) for factor in self.factors())
        if len(self.shape) == 2:
            y = F.linear(x.unflatten(-1, (first.shape[1], -1)), second)
            return (torch.matmul(first, y) * self.scale).flatten(-2)
        y = applied(layer, x.reshape(-1, second.shape[1], *x.shape[-len(self.shape[2:]) :]), second)
        mixed = torch.matmul(first, y.reshape(-1, first.shape[1], y[0].numel())) * self.scale
        return mixed.reshape(*x.shape[: -len(self.shape) + 1], self.shape[0], *y.shape[2:])


class OFT(Delta):
    """D = (R - 1) W, R a block diagonal of Cayley transforms of skew-symmetric matrices (Qiu et al. 2023, sec. 3.3).

    With Q = blocks - blocks^T, R^T = (1 + Q) (1 - Q)^-1. `alpha` times the number of outputs bounds the norm of Q
    (0 or None: no bound); `rescale` multiplies the rows after the rotation.
    """

    algorithm = "oft"
    needs_weight = True
    required = (("blocks",),)
    blocks: Tensor
    rescale: Tensor | None

    @staticmethod
    def wanted(shapes: Shapes, shape: Shape) -> tuple[dict[str, Shape], int]:
        """Return the shapes: blocks that together are as long as the output, or one that all share."""
        size, out = shapes["blocks"][-1], shape[0]
        if size < 1 or out % size:
            raise ConfigError(f"blocks of size {size} do not divide the {out} outputs of the layer")
        count = () if len(shapes["blocks"]) == 2 else (out // size,)
        return {"blocks": (*count, size, size), "rescale": (out, *(1 for _ in shape[1:]))}, 0

    def turn(self) -> Tensor:
        """Return R^T - 1 = 2 Q (1 - Q)^-1 as blocks (count, size, size)."""
        q = wide(self.blocks) - wide(self.blocks).mT
        if self.alpha:
            norm = torch.linalg.vector_norm(q) + 1e-8
            q = q * (self.alpha * self.shape[0] / norm).clamp(max=1)
        eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        turn = torch.linalg.solve(eye - q, 2 * q, left=False)
        return turn.expand(self.shape[0] // len(eye), -1, -1)

    def dense(self, weight: Tensor | None = None) -> Tensor:
        """Return what the rotation changes of the weight."""
        weight, turn = wide(needed(weight)), self.turn()
        dtype = torch.promote_types(weight.dtype, turn.dtype)
        weight, turn = weight.to(dtype), turn.to(dtype)
        turned = torch.einsum("knm,kn...->km...", turn, weight.unflatten(0, (len(turn), -1))).flatten(0, 1)
        return turned if self.rescale is None else self.rescale.to(dtype) * (weight + turned) - weight

    def forward(self, x: Tensor, layer: nn.Module, weight: Tensor | None, output: Tensor | None) -> Tensor:
        """Return the change of the output: the rotation acts on it as on the weight."""
        if output is None or not ungrouped(layer):
            return applied(layer, x, self.dense(weight)) * self.scale
        y = unbiased(layer, output)
        channels = -len(self.shape) + 1 if len(self.shape) > 2 else -1
        turn = self.turn().to(y.dtype)
        rows = y.movedim(channels, -1).unflatten(-1, (turn.shape[0], -1)).unsqueeze(-2)
        turned = torch.matmul(rows, turn).flatten(-3).movedim(-1, channels)
        if self.rescale is not None:
            turned = on_channels(layer, self.rescale.flatten(), y) * (y + turned) - y
        return turned * self.scale


class Full(Delta):
    """D is the difference itself; the only algorithm for norms and embeddings, and for biases alone."""

    algorithm = "full"
    required = (("diff",), ("diff_bias",))
    diff: Tensor | None
    diff_bias: Tensor | None

    @staticmethod
    def wanted(shapes: Shapes, shape: Shape) -> tuple[dict[str, Shape], int]:
        """Return the shapes of weight and bias."""
        return {"diff": shape, "diff_bias": shape[:1]}, 0

    def product(self) -> Tensor:
        """Return the difference of the weight, 0 if only the bias has one."""
        if self.diff is None:
            return torch.zeros(self.shape, dtype=torch.float32, device=self.scale.device)
        return wide(self.diff)

    def dense_bias(self) -> Tensor | None:
        """Return the difference of the bias."""
        return None if self.diff_bias is None else wide(self.diff_bias)

    def accumulate_(self, total: Tensor, weight: Tensor, scale: float) -> None:
        """Add the difference, if the weight has one."""
        if self.diff is not None:
            super().accumulate_(total, weight, scale)

    def forward(self, x: Tensor, layer: nn.Module, weight: Tensor | None, output: Tensor | None) -> Tensor:
        """Return the layer with the differences as weight and bias."""
        if self.diff is None and output is not None and self.diff_bias is not None:
            return on_channels(layer, self.diff_bias, output) * self.scale
        return applied(layer, x, self.product(), self.diff_bias) * self.scale


class DoRA(Delta):
    """D = m o (W + D') / |W + D'| - W, where D' is the difference of another delta (Liu et al. 2024, eq. 5).

    The norm is that of each row, or of each column for a magnitude (1, in); no gradient flows through it (sec. 4.3).
    """

    needs_weight = True
    magnitude: Tensor

    def __init__(self, inner: Delta, magnitude: Tensor, stored: Shape):
        self.algorithm = inner.algorithm  # type: ignore[misc]
        super().__init__({"magnitude": magnitude}, None, inner.shape, 0, {"magnitude": stored})
        self.inner = inner
        self.columns = magnitude.shape[1] != 1 or magnitude.shape[0] != inner.shape[0]

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The tensors of both."""
        return {**self.inner.tensors, "magnitude": self._parameters["magnitude"]}  # type: ignore[dict-item]

    def parts(self) -> Parts:
        """Return what a file holds for both."""
        inner, magnitude = self.inner.parts(), self.magnitude.detach().reshape(self.stored["magnitude"])
        return Parts(inner.algorithm, {**inner.tensors, "magnitude": magnitude}, inner.alpha)

    def _become(self, other: Delta) -> None:
        super()._become(other)
        assert isinstance(other, DoRA)
        self.inner._become(other.inner)

    def normed(self, weight: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changed weight and the factor m / |W + D'|."""
        changed = wide(needed(weight)) + change
        axis = 1 if self.columns else 0
        others = [i for i in range(changed.dim()) if i != axis]
        return changed, wide(self.magnitude) / torch.linalg.vector_norm(changed, dim=others, keepdim=True).detach()

    def dense(self, weight: Tensor | None = None) -> Tensor:
        """Return what direction and magnitude change of the weight."""
        changed, factor = self.normed(weight, self.inner.dense(weight))
        return factor * changed - needed(weight)

    def dense_bias(self) -> Tensor | None:
        """Return the difference of the bias, which has no magnitude."""
        return self.inner.dense_bias()

    def forward(self, x: Tensor, layer: nn.Module, weight: Tensor | None, output: Tensor | None) -> Tensor:
        """Return (m / |.| - 1) W x + m / |.| D' x, from the output that is there."""
        changed, factor = self.normed(weight, self.inner.product() * self.inner.scale)
        if output is None or self.columns:
            return applied(layer, x, factor * changed - needed(weight), self.dense_bias()) * self.scale
        y = unbiased(layer, output)
        rest, whole = (on_channels(layer, vector.flatten(), y) for vector in (factor - 1, factor))
        bias = self.dense_bias()
        added = rest * y + whole * self.inner(x, layer, weight, output)
        if bias is not None:
            added = added + on_channels(layer, bias, y) * (1 - whole)
        return added * self.scale


def is_plain(delta: Delta) -> bool:
    """Tell whether a delta is a product of two factors and nothing else."""
    return isinstance(delta, LoRA) and delta.mid is None


def needed(weight: Tensor | None) -> Tensor:
    """Return the layer's weight, which some algorithms cannot do without."""
    if weight is None:
        raise ConfigError("This algorithm changes the layer's own weight: give it.")
    return weight


def unbiased(layer: nn.Module, output: Tensor) -> Tensor:
    """Return an output of the layer without its bias."""
    bias = layer.bias
    return output - on_channels(layer, bias, output) if isinstance(bias, Tensor) else output


def tucker(core: Tensor | None, a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """Return a b in the given shape; with a core, core x1 a^T x2 b^T, where a and b have the rank first."""
    if core is None:
        return (wide(a) @ wide(b)).reshape(shape)
    return torch.einsum("ij...,ip,jq->pq...", wide(core), wide(a), wide(b))
