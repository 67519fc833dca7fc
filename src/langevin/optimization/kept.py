"""Keys and values of a text, computed once for as long as the text's tensor is there, and not at every step.

A sampling loop hands the network the same context at every step, so the keys and values that cross-attention makes of
it are the same too. They are kept per layer, found by the identity of the context, and go when it goes: those of a
pipeline's run at the end of the run. Runs in several threads have contexts of their own.

What is kept is used only while it is what would be computed: context and weights are the same tensors with the same
version counters, and the projections are plain linear layers without hooks, which those with a LoRA are not. Writes
that torch does not count, through `.data` or NumPy, are not seen.

Gain, by `python -m benchmarks.kept` on one core of an AVX-512 CPU in float32: keys and values take 1.0 of the 32 ms of
a call of the picturebook's network with 77 tokens, which took 2 to 4 % less with those kept, and 3 to 4 % with masked
keys up to a multiple of 8 as well. With 24 tokens they take 0.5 ms, and in a network of Stable Diffusion 1.5's size
0.05 of 13.3 s, both less than calls differ among themselves. Loss: they stay in memory during a run, 15 MB for two rows
of 77 tokens at that size. Not measured on a GPU.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..nn.attention import Attention, Seen
from ..nn.compiled import bare
from .layers import WideLinear
from .products import DirectLinear, TiledAttention

LIMIT = 4
"""How many contexts a layer knows at once."""
PAD = 8
"""Multiple of keys with which torch's attention on CPUs works best."""

LINEAR = (nn.Linear, WideLinear, DirectLinear)
"""Classes of projections whose result depends on context and weights alone."""


@dataclass(frozen=True)
class Entry:
    """What a context became.

    Attributes:
        seen: keys, values and mask.
        version: the context's version counter.
        kinds: the classes of the projections, which may round differently.
        sources: the weights' values; while they are here nothing else can have their addresses.
        versions: the weights' version counters.
    """

    seen: Seen
    version: int
    kinds: tuple[type, ...]
    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def holds(self, context: Tensor, kinds: tuple[type, ...], weights: tuple[Tensor, ...]) -> bool:
        """Tell whether context and projections are what they were."""
        return (
            self.version == context._version
            and self.kinds == kinds
            and self.versions == tuple(weight._version for weight in weights)
            and all(a.data_ptr() == b.data_ptr() for a, b in zip(self.sources, weights, strict=True))
        )


class KeptContexts:
    """Keys and values that one attention made of contexts.

    Copies and pickles of it are empty.

    Args:
        pad: the number of keys is brought to a multiple of this by masked ones, where there is no other mask.
    """

    def __init__(self, pad: int = 1) -> None:
        self.pad = pad
        self._entries = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[KeptContexts], tuple[int]]:
        return type(self), (self.pad,)

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, attn: Attention, context: Tensor, mask: Tensor | None) -> Seen | None:
        """Return keys, values and mask of a context (B, L, C), kept or computed; None where they cannot be kept."""
        if torch.compiler.is_compiling() or mask is not None or not steady(context):
            return None
        weights = weights_of(attn)
        if weights is None:
            return None
        entry, kinds = self._entries.get(context), (type(attn.to_k), type(attn.to_v))
        if entry is None or not entry.holds(context, kinds, weights):
            seen = padded(*attn.keys_values(context, context), self.pad)
            sources = tuple(weight.detach() for weight in weights)
            entry = Entry(seen, context._version, kinds, sources, tuple(weight._version for weight in weights))
            with self._lock:
                for old in list(self._entries.keys())[: max(len(self) + 1 - LIMIT, 0)]:
                    self._entries.pop(old, None)
                self._entries[context] = entry
        return entry.seen


def steady(context: Tensor) -> bool:
    """Tell whether a context says when it is changed, and what is computed from it now is computed for good."""
    return (
        type(context) is Tensor
        and not torch.is_grad_enabled()
        and not context.is_inference()
        and not torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled(context.device.type)
        and not torch.jit.is_tracing()
        and not (context.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def weights_of(attn: Attention) -> tuple[Tensor, ...] | None:
    """Return what makes keys and values of a context; None unless two plain linear layers do."""
    found: list[Tensor] = []
    for layer in (attn.to_k, attn.to_v):
        if layer is None or type(layer) not in LINEAR or "forward" in vars(layer):
            return None
        if layer._forward_hooks or layer._forward_pre_hooks:
            return None
        for weight in (layer.weight, layer.bias):
            if weight is not None:
                if type(weight) is not nn.Parameter or weight.is_inference():
                    return None
                found.append(weight)
    return tuple(found)


def padded(k: Tensor, v: Tensor, multiple: int) -> Seen:
    """Return keys and values (B, heads, L, d) with masked ones behind them, up to a multiple, and the mask."""
    count = k.shape[2]
    missing = -count % multiple
    if not missing:
        return k, v, None
    mask = torch.zeros(count + missing, dtype=k.dtype, device=k.device)
    mask[count:] = -torch.inf
    longer = (F.pad(x, (0, 0, 0, missing)) for x in (k, v))
    return *longer, mask.view(1, 1, 1, -1)  # type: ignore[return-value]


def attentions(network: nn.Module) -> list[Attention]:
    """Return the attentions of a network whose keys and values come of the context alone."""
    found = (module for module in bare(network).modules() if type(module) in (Attention, TiledAttention))
    return [a for a in found if a.is_cross_attention and a.add_k_proj is None and a.norm_cross is None]


def attach(network: nn.Module, *, pad: int = 1) -> int:
    """Let a network's cross-attention keep keys and values; return in how many layers.

    Args:
        pad: see `KeptContexts`; with more than 1 the output may differ by rounding.
    """
    chosen = attentions(network)
    for attn in chosen:
        attn.kept = KeptContexts(pad)
    return len(chosen)


def detach(network: nn.Module) -> None:
    """Let a network compute keys and values at every call again, and forget those that are there."""
    for attn in attentions(network):
        attn.__dict__.pop("kept", None)


class KeptText:
    """Keeps keys and values of the text: a step of `optimize`, for networks with cross-attention on the CPU."""

    name = "kept text"
    gain = "keys and values of the prompt are computed once per run; they stay in memory meanwhile"

    def applies(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Tell whether the network has cross-attention and computes on the CPU; elsewhere nothing was measured."""
        return device.type == "cpu" and bool(attentions(network))

    def apply(self, network: nn.Module) -> None:
        """Keep them from now on, with masked keys up to a multiple of `PAD`."""
        attach(network, pad=PAD)

    def undo(self, network: nn.Module) -> None:
        """Compute them at every call again."""
        detach(network)
