"""Several adapters merged into one: sums, concatenation, pruning with elected signs, and their low-rank forms.

The names are those of the documented `combination_type`. A method works on the two factors of LoRAs one by one, which
is cheap and, as a product of sums is not the sum of products, rough; or, with `svd` in its name, on the dense
differences, whose result is cut to a LoRA again. `cat` is exact and adds up the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, check_choice
from ..core.progress import progress_bar
from ..weights.dialects.parts import Parts
from .attaching import found_layers
from .deltas import Delta, is_plain, wide
from .factoring import Truncation, as_lora, decomposed, decomposed_product
from .fitting import build
from .folding import own_weight
from .layers import weight_shape

Adapter = Mapping[str, Parts]
SIGNS = ("total", "frequency")


@dataclass(frozen=True)
class Recipe:
    """How tensors of several adapters become one.

    Attributes:
        density: the fraction of entries that pruning keeps.
        signs: what elects a sign: the sum of the values ("total") or of their signs ("frequency").
        generator: of the entries that DARE drops; drawn on its device, adapter by adapter, layer by layer.
    """

    density: float = 1.0
    signs: str = "total"
    generator: torch.Generator | None = None


Reduce = Callable[[list[Tensor], list[float], Recipe], Tensor]


def summed(tensors: list[Tensor], weights: list[float], recipe: Recipe) -> Tensor:
    """Return the weighted sum (task arithmetic, Ilharco et al. 2022, 2212.04089)."""
    return sum((weight * tensor for tensor, weight in zip(tensors, weights, strict=True)), torch.zeros_like(tensors[0]))


def trimmed(tensor: Tensor, recipe: Recipe) -> Tensor:
    """Return the tensor with only its largest entries (TIES, Yadav et al. 2023, 2306.01708, algorithm 1, step 1)."""
    kept = int(recipe.density * tensor.numel())
    if kept >= tensor.numel():
        return tensor
    chosen = tensor.abs().flatten().topk(kept).indices
    return torch.zeros_like(tensor).flatten().index_copy_(0, chosen, tensor.flatten()[chosen]).reshape(tensor.shape)


def dropped(tensor: Tensor, recipe: Recipe) -> Tensor:
    """Return the tensor with random entries dropped, the others enlarged (DARE, Yu et al. 2023, 2311.03099, eq. 3)."""
    generator = recipe.generator
    device = tensor.device if generator is None else generator.device
    kept = torch.rand(tensor.shape, generator=generator, device=device) < recipe.density
    return tensor * kept.to(tensor.device) / recipe.density


def elected(tensors: list[Tensor], weights: list[float], recipe: Recipe) -> Tensor:
    """Return the weighted mean of the entries that have the elected sign (TIES, algorithm 1, steps 2 and 3)."""
    stack = torch.stack(tensors)
    votes = stack.sum(0) if recipe.signs == "total" else stack.sign().sum(0)
    agree = stack.sign() == torch.where(votes >= 0, 1.0, -1.0)
    scale = torch.tensor(weights, dtype=stack.dtype, device=stack.device).reshape(-1, *(1 for _ in votes.shape))
    return (stack * scale * agree).sum(0) / agree.sum(0).clamp(min=1)


def after(prune: Callable[[Tensor, Recipe], Tensor], reduce: Reduce) -> Reduce:
    """Return `reduce` of pruned tensors."""
    return lambda tensors, weights, recipe: reduce([prune(tensor, recipe) for tensor in tensors], weights, recipe)


METHODS: dict[str, Reduce] = {
    "linear": summed,
    "magnitude_prune": after(trimmed, summed),
    "ties": after(trimmed, elected),
    "dare_linear": after(dropped, summed),
    "dare_ties": after(dropped, elected),
}
SPARSE = tuple(name for name in METHODS if name != "linear")
COMBINATIONS = (*METHODS, "cat", "svd", *(f"{name}_svd" for name in SPARSE))


def merge(
    model: nn.Module,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    combination_type: str = "svd",
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
    generator: torch.Generator | None = None,
) -> dict[str, Parts]:
    """Return one adapter made of several.

    Layers that only some of the adapters change are merged among those. Where all change a layer by full differences,
    as they do norms, the result is a full difference.

    Args:
        model: the network with the layers that the paths name; its values matter only to DoRA and OFT.
        adapters: path -> parts, one mapping for each adapter.
        weights: one for each adapter.
        combination_type: one of `COMBINATIONS`.
        svd_rank: of the result; by default the largest rank among the adapters.
        svd_clamp: quantile at which the entries of the factors are clamped; see `Truncation`.
        density: the fraction of entries kept, in (0, 1]; the pruning methods need it.
        majority_sign_method: "total" or "frequency", how TIES elects signs.
        generator: of the random entries of DARE, which needs it.

    Raises:
        InputError: an option is missing or does not belong to the method.
        ConfigError: adapters that the method cannot merge, or that do not fit the network.
    """
    check_choice("combination_type", combination_type, COMBINATIONS)
    check_choice("majority_sign_method", majority_sign_method, SIGNS)
    method = "linear" if combination_type == "svd" else combination_type.removesuffix("_svd")
    if not adapters or len(adapters) != len(weights):
        raise InputError(f"There are {len(adapters)} adapters and {len(weights)} weights; give one weight for each.")
    if (method in SPARSE) != (density is not None) or not 0 < (1.0 if density is None else density) <= 1:
        raise InputError(f"density is {density}; {' and '.join(SPARSE)} need one in (0, 1], other methods take none.")
    if (svd_rank, svd_clamp) != (None, None) and not combination_type.endswith("svd"):
        raise InputError(f"{combination_type!r} decomposes nothing: leave svd_rank and svd_clamp out, or take 'svd'.")
    if generator is None and method.startswith("dare"):
        raise InputError("DARE drops entries at random: give generator=torch.Generator().manual_seed(...).")
    recipe = Recipe(1.0 if density is None else density, majority_sign_method, generator)
    merged = {}
    for path, layer, deltas, shares in progress_bar(list(by_layer(model, adapters, weights)), desc="merging adapters"):
        if all(delta.algorithm == "full" for delta in deltas):
            merged[path] = full(deltas, shares, METHODS.get(method, summed), recipe)
        elif combination_type.endswith("svd"):
            rank = max(delta.rank for delta in deltas) if svd_rank is None else svd_rank
            if svd_rank is None and not rank:
                raise ConfigError(f"Layer {path!r}: none of the adapters has a rank; give svd_rank=.")
            truncation = Truncation(rank, clamp=svd_clamp)
            merged[path] = low_rank(layer, deltas, shares, METHODS[method], recipe, truncation)
        else:
            merged[path] = factorwise(path, deltas, shares, method, recipe)
    return merged


def by_layer(
    model: nn.Module, adapters: Sequence[Adapter], weights: Sequence[float]
) -> Iterator[tuple[str, nn.Module, list[Delta], list[float]]]:
    """Yield path, layer, the deltas of the adapters that change it, and their weights."""
    layers = found_layers(model, dict.fromkeys(path for adapter in adapters for path in adapter))
    for path, layer in layers.items():
        here = [(adapter[path], weight) for adapter, weight in zip(adapters, weights, strict=True) if path in adapter]
        yield path, layer, [build(parts, layer, path=path) for parts, _ in here], [weight for _, weight in here]


def full(deltas: list[Delta], weights: list[float], reduce: Reduce, recipe: Recipe) -> Parts:
    """Return the merged difference of weight and bias of a layer that all change by full differences."""
    found = {}
    for name in ("diff", "diff_bias"):
        here = [(delta, weight) for delta, weight in zip(deltas, weights, strict=True) if name in delta.tensors]
        if here:
            tensors = [wide(delta.tensors[name].detach()) for delta, _ in here]
            found[name] = reduce(tensors, [weight for _, weight in here], recipe)
    return Parts("full", found)


@torch.no_grad()
def low_rank(
    layer: nn.Module, deltas: list[Delta], weights: list[float], reduce: Reduce, recipe: Recipe, truncation: Truncation
) -> Parts:
    """Return the merged dense differences as a LoRA; sums of plain LoRAs never become dense."""
    if reduce is summed and all(is_plain(delta) for delta in deltas):
        usv = decomposed_product(*concatenated(deltas, weights), truncation)
    else:
        dense = [delta.dense(own_weight(layer)).flatten(1) for delta in deltas]
        usv = decomposed(reduce(dense, weights, recipe), truncation)
    made = as_lora(*usv, weight_shape(layer), clamp=truncation.clamp)
    return with_bias(made, deltas, weights, reduce, recipe)


@torch.no_grad()
def factorwise(path: str, deltas: list[Delta], weights: list[float], method: str, recipe: Recipe) -> Parts:
    """Return the merged factors of plain LoRAs as a LoRA.

    The weight of a LoRA and its alpha / rank are shared between the factors: the square root for each, and the sign
    with the lower one.
    """
    if not all(is_plain(delta) for delta in deltas):
        kinds = ", ".join(type(delta).__name__ for delta in deltas)
        raise ConfigError(f"Layer {path!r} ({kinds}): {method!r} merges the factors of LoRAs; take 'svd' or '*_svd'.")
    ranks = sorted({delta.rank for delta in deltas})
    if method == "cat":
        up, down = concatenated(deltas, weights)
    elif len(ranks) > 1:
        raise ConfigError(f"Layer {path!r}: {method!r} needs adapters of one rank, not {ranks}; take 'cat' or 'svd'.")
    else:
        pairs = zip(deltas, weights, strict=True)
        roots = [math.copysign(math.sqrt(abs(weight * delta.unit)), weight * delta.unit) for delta, weight in pairs]
        down = METHODS[method](flat(deltas, "down"), roots, recipe)
        up = METHODS[method](flat(deltas, "up"), [abs(root) for root in roots], recipe)
    made = as_lora(up, torch.ones(len(down), dtype=up.dtype, device=up.device), down, deltas[0].shape)
    return with_bias(made, deltas, weights, METHODS.get(method, summed), recipe)


def flat(deltas: list[Delta], name: str) -> list[Tensor]:
    """Return one factor of each LoRA as a matrix."""
    return [wide(delta.tensors[name]).flatten(1) for delta in deltas]


def concatenated(deltas: list[Delta], weights: list[float]) -> tuple[Tensor, Tensor]:
    """Return factors whose product is the weighted sum of the products."""
    scales = [delta.unit * weight for delta, weight in zip(deltas, weights, strict=True)]
    downs = [factor * scale for factor, scale in zip(flat(deltas, "down"), scales, strict=True)]
    return torch.cat(flat(deltas, "up"), 1), torch.cat(downs)


def with_bias(made: Parts, deltas: list[Delta], weights: list[float], reduce: Reduce, recipe: Recipe) -> Parts:
    """Return the parts with the merged bias of those that have one."""
    pairs = [(delta.dense_bias(), weight) for delta, weight in zip(deltas, weights, strict=True)]
    held = [(bias, weight) for bias, weight in pairs if bias is not None]
    if not held:
        return made
    bias = reduce([bias for bias, _ in held], [weight for _, weight in held], recipe)
    return Parts(made.algorithm, {**made.tensors, "bias": bias}, made.alpha)
