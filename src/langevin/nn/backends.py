"""Kernels that compute scaled dot-product attention, chosen by name.

Every kernel takes queries (B, heads, Lq, d), keys and values (B, heads, Lk, d), an optional mask that broadcasts to
(B, heads, Lq, Lk) and is either boolean (True = may attend) or added to the scores, and a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError, did_you_mean

Kernel = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention by torch's fused kernels, which keep scores in fp32 whatever the input type."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention written out with plain tensor operations; deterministic, traceable and exportable everywhere."""
    return torch.matmul(attention_weights(q, k, mask, scale), v)


def eager_fp32(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Like `eager`, with scores and softmax in fp32 (for checkpoints whose scores overflow in half precision)."""
    weights = attention_weights(q.float(), k.float(), mask, scale)
    return torch.matmul(weights.to(v.dtype), v)


def in_tiles(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Like `sdpa`; on CPUs in tiles of queries where there are many scores, see `tiles`."""
    from .tiles import fits, tiled

    kernel = tiled if fits(q, k, v, mask) else sdpa
    return kernel(q, k, v, mask, scale)


def by_amx(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Like `sdpa`; in bfloat16 on CPUs with AMX by a kernel that is compiled there, see `amx`."""
    from . import amx

    kernel = amx.by_amx if amx.fits(q, k, v, mask) and amx.KERNEL.ready() else sdpa
    return kernel(q, k, v, mask, scale)


def preferring(name: str) -> Kernel:
    """Return attention like `sdpa` that prefers one of torch's kernels, where the device and the tensors allow it."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        first = getattr(SDPBackend, name)
        with sdpa_kernel([first, *(other for other in _torch_kernels() if other != first)], set_priority=True):
            return sdpa(q, k, v, mask, scale)

    return kernel


def _torch_kernels() -> list[Any]:
    """Return torch's kernels, from the fastest that computes the least to the one that computes all."""
    from torch.nn.attention import SDPBackend

    names = "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"
    return [getattr(SDPBackend, name) for name in names]


def by_time(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Like `sdpa`, by the kernel that was the fastest for such tensors, see `measured`."""
    from .measured import measured

    return measured(q, k, v, mask, scale)


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Memory-efficient attention of the optional xformers package."""
    from ..core.imports import require

    ops = require("xformers.ops", why="the 'xformers' attention backend")
    bias = None
    if mask is not None:
        bias = as_bias(mask, q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2]).contiguous()
    out = ops.memory_efficient_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias, scale=scale
    )
    return out.transpose(1, 2)


BACKENDS: dict[str, Kernel] = {
    "sdpa": sdpa,
    "eager": eager,
    "eager_fp32": eager_fp32,
    "tiled": in_tiles,
    "amx": by_amx,
    "flash": preferring("FLASH_ATTENTION"),
    "efficient": preferring("EFFICIENT_ATTENTION"),
    "cudnn": preferring("CUDNN_ATTENTION"),
    "measured": by_time,
    "xformers": xformers,
}
ALIASES = {"native": "sdpa", "math": "eager"}

_default = "sdpa"


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into one that is added to scores; an additive mask passes through, cast."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    return mask.to(dtype)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return softmax(scale q k^T + mask), shape (..., Lq, Lk)."""
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + as_bias(mask, scores.dtype)
    return scores.softmax(dim=-1)


def resolve_backend(name: str) -> str:
    """Return the canonical name of a backend.

    Raises:
        ConfigError: the name is unknown, or the processor cannot compute by it.
        MissingDependencyError: its package, or the compiler that it needs, is not installed.
    """
    name = ALIASES.get(name, name)
    if name not in BACKENDS:
        raise ConfigError(f"no attention backend {name!r}{did_you_mean(name, [*BACKENDS, *ALIASES])}")
    if name == "xformers":
        from ..core.imports import require

        require("xformers", why="the 'xformers' attention backend")
    if name == "amx":
        from .amx import KERNEL

        KERNEL.function()
    return name


def get_attention_backend() -> str:
    """Return the backend used where neither the call nor the model names one."""
    return _default


def set_attention_backend(name: str) -> None:
    """Choose the backend used where neither the call nor the model names one."""
    global _default
    _default = resolve_backend(name)


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Use another default backend inside a `with` block."""
    before = get_attention_backend()
    set_attention_backend(name)
    try:
        yield
    finally:
        set_attention_backend(before)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str | None = None,
    slice_size: int | None = None,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    Shapes: q (B, heads, Lq, d), k and v (B, heads, Lk, d) -> (B, heads, Lq, d). `mask` broadcasts to
    (B, heads, Lq, Lk): boolean (True = may attend) or added to the scores. `scale` defaults to d ** -0.5.
    `slice_size` computes that many (image, head) pairs at a time, which bounds the memory of the scores.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kernel = BACKENDS[_default if backend is None else backend]
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        mask = mask.to(q.dtype)
    if slice_size is None or slice_size >= q.shape[0] * q.shape[1]:
        return kernel(q, k, v, mask, scale)
    batch, heads = q.shape[:2]
    if mask is not None:
        while mask.dim() < 4:
            mask = mask[None]
        mask = mask.expand(batch, heads, -1, -1).flatten(0, 1)[:, None]
    q, k, v = (x.flatten(0, 1)[:, None] for x in (q, k, v))
    parts = [
        kernel(q[rows], k[rows], v[rows], None if mask is None else mask[rows], scale)
        for rows in (slice(i, i + slice_size) for i in range(0, batch * heads, slice_size))
    ]
    return torch.cat(parts).view(batch, heads, q.shape[2], v.shape[3])
