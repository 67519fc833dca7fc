"""A LoRA from the difference of two checkpoints, layer by layer, with what it loses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, NonFiniteError
from ..core.progress import progress_bar
from ..core.report import paired, some
from ..weights.dialects.parts import Parts
from .deltas import wide
from .factoring import Truncation, as_lora, decomposed
from .layers import PRODUCTS, kind

Weights = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class LayerError:
    """What a LoRA keeps of the difference of one layer.

    Attributes: path; rank, 0 for a full difference; norm, of the difference (Frobenius); error, the norm of what is
    lost over `norm`.
    """

    path: str
    rank: int
    norm: float
    error: float

    @property
    def energy(self) -> float:
        """The fraction of the sum of squares that is kept."""
        return 1 - self.error**2


@dataclass
class ErrorReport:
    """What a LoRA keeps of the difference of two checkpoints.

    Attributes: layers, those that the LoRA changes; unchanged, the number of tensors that are equal; omitted, name ->
    norm of the difference of what differs and is not part of the LoRA (norms, biases, layers that were not chosen).
    """

    layers: list[LayerError] = field(default_factory=list)
    unchanged: int = 0
    omitted: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The norm of all that is lost, omitted tensors included, over the norm of the whole difference."""
        lost = sum((row.norm * row.error) ** 2 for row in self.layers) + sum(norm**2 for norm in self.omitted.values())
        whole = sum(row.norm**2 for row in self.layers) + sum(norm**2 for norm in self.omitted.values())
        return (lost / whole) ** 0.5 if whole else 0.0

    @property
    def energy(self) -> float:
        """The fraction of the whole difference's sum of squares that is kept."""
        return 1 - self.error**2

    def __str__(self) -> str:
        rows = [f"{row.path}: rank {row.rank}, error {row.error:.2e}, norm {row.norm:.3g}" for row in self.layers]
        left = [f"{name}: omitted, norm {norm:.3g}" for name, norm in self.omitted.items()]
        return "\n".join([*rows, *left, f"total: error {self.error:.2e}, energy {self.energy:.4f}"])


@torch.no_grad()
def extract(
    tuned: Weights,
    base: Weights,
    *,
    rank: int | None = None,
    energy: float | None = None,
    clamp: float | None = None,
    niter: int | None = None,
    layers: str | Callable[[str], bool] | None = None,
    full: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[dict[str, Parts], ErrorReport]:
    """Return the LoRA nearest to the difference of two checkpoints, path -> parts, and what it loses.

    Each layer is read, decomposed and forgotten before the next. The truncated singular value decomposition is the
    nearest matrix of its rank (Eckart and Young 1936), and equal to the difference if that has no larger rank.

    Args:
        tuned, base: networks, or state dicts in the names of one network.
        rank: of each layer, at most.
        energy: the fraction of each layer's sum of squares to be kept, with as small a rank as that takes.
        clamp: quantile at which the entries of the factors are clamped, as kohya's scripts do at 0.99.
        niter: of a randomised decomposition. For both see `Truncation`.
        layers: a regular expression found in the paths that are wanted, or a function; all by default. A LoRA fits the
            linear layers and convolutions of a network, the matrices of a state dict.
        full: keep the other differences of those paths (norms, biases) as they are.
        dtype: of the tensors that are returned; float32 by default.
        device: on which to compute; that of the tensors by default.

    Raises:
        ConfigError: the checkpoints hold different names or shapes, or nothing differs.
        NonFiniteError: a difference is not finite.
    """
    truncation = Truncation(rank, energy, clamp, niter)
    ours, theirs = (weights.state_dict() if isinstance(weights, nn.Module) else weights for weights in (tuned, base))
    same_names(ours, theirs)
    kind_at = kinds(tuned if isinstance(tuned, nn.Module) else base)
    wanted = layers if callable(layers) else re.compile(layers or "").search
    report, parts = ErrorReport(), dict[str, Parts]()
    extras: dict[str, dict[str, Tensor]] = {}
    for name in progress_bar(list(ours), desc="extracting a LoRA"):
        difference = subtracted(name, ours[name], theirs[name], device)
        norm = 0.0 if difference is None else float(torch.linalg.vector_norm(difference))
        path, _, what = name.rpartition(".")
        if difference is None or not norm:
            report.unchanged += 1
        elif wanted(path) and what == "weight" and difference.dim() > 1 and kind_at(path) in PRODUCTS:
            matrix = difference.flatten(1)
            made = as_lora(*decomposed(matrix, truncation), tuple(difference.shape), clamp=clamp)
            made = made.map(lambda tensor: tensor.to(dtype or torch.float32))
            up, down = (made.tensors[factor].flatten(1).to(matrix.dtype) for factor in ("up", "down"))
            lost = float(torch.linalg.vector_norm(matrix - up @ down)) / norm
            report.layers.append(LayerError(path, len(down), norm, lost))
            parts[path] = made
        elif wanted(path) and full and what in ("weight", "bias") and kind_at(path):
            extras.setdefault(path, {})["diff" if what == "weight" else "diff_bias"] = difference
        else:
            report.omitted[name] = norm
    keep(parts, extras, report, dtype)
    if not parts:
        raise ConfigError(
            f"Nothing to extract: {report.unchanged} tensors are equal, {some(list(report.omitted))} differ."
        )
    return parts, report


def keep(
    parts: dict[str, Parts], extras: Mapping[str, dict[str, Tensor]], report: ErrorReport, dtype: torch.dtype | None
) -> None:
    """Add full differences to the parts: the bias of a LoRA, or a layer of its own."""
    for path, tensors in extras.items():
        report.layers += [LayerError(path, 0, float(torch.linalg.vector_norm(t)), 0.0) for t in tensors.values()]
        tensors = {name: tensor.to(dtype or torch.float32) for name, tensor in tensors.items()}
        if path in parts:
            made = parts[path]
            parts[path] = replace(made, tensors={**made.tensors, "bias": tensors["diff_bias"]})
        else:
            parts[path] = Parts("full", tensors)


def same_names(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """Raise ConfigError unless two checkpoints have the same names."""
    for found, other, which in ((tuned, base, "base"), (base, tuned, "tuned")):
        lacking = [name for name in found if name not in other]
        if lacking:
            raise ConfigError(
                f"The {which} checkpoint lacks {some(paired(lacking, list(other)))}: the two are not of one model, "
                "or in different dialects."
            )


def kinds(model: Weights) -> Callable[[str], str | None]:
    """Return what tells the kind of the layer at a path; of a state dict it is not known, and all count as linear."""
    if not isinstance(model, nn.Module):
        return lambda path: "linear"
    modules = dict(model.named_modules())
    return lambda path: kind(modules[path])


def subtracted(name: str, tuned: Tensor, base: Tensor, device: torch.device | str | None) -> Tensor | None:
    """Return the difference in float32 or wider; None for tensors of whole numbers that are equal."""
    if tuned.shape != base.shape:
        raise ConfigError(
            f"{name!r} has the shape {list(tuned.shape)} in one checkpoint and {list(base.shape)} in the other."
        )
    if not tuned.is_floating_point():
        if torch.equal(tuned, base.to(tuned.device)):
            return None
        raise ConfigError(
            f"{name!r} holds whole numbers that differ: quantised checkpoints have no difference to extract."
        )
    place = device or tuned.device
    difference = wide(tuned.to(place)) - wide(base.to(place))
    if not bool(difference.isfinite().all()):
        raise NonFiniteError(
            f"The difference of {name!r} is not finite: one of the checkpoints is damaged.", module=name
        )
    return difference
