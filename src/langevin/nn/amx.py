"""Attention in bfloat16 on processors with AMX, by a kernel in C++ that is compiled where it runs.

Scores, powers and values of a block stay in the processor's cache (FlashAttention, Dao et al. 2022); torch's kernel
does the same with a slower exponential, which is what attention waits for there. The source is `amx_attention.cpp`.

Gain on two cores with AMX: 2 x 8 heads of 40 channels and 4096 tokens take 50 in place of 93 ms, 1024 tokens of 80
channels 4.5 in place of 7.7, and 77 keys 2.4 in place of 6.6; a step of Stable Diffusion 1.5 at 512 pixels has five of
the first kind (`python -m benchmarks --only step-sd15 --level L1 --dtype bfloat16`). Loss: results differ by rounding;
a copy of keys and values is in memory meanwhile, and the first use on a machine compiles for some seconds.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import native
from .compiled import looked_through

WIDEST = 256
"""Channels of a head up to which the kernel was found faster."""
FEWEST = 1 << 20
"""Multiplications for the scores of a head from which on it is used."""


def supported() -> bool:
    """Tell whether the processor has AMX for bfloat16, and the system is one that the kernel is written for."""
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return here and torch.cpu._is_amx_tile_supported() and torch.cpu._is_avx512_bf16_supported()


def agrees(function: Any) -> bool:
    """Tell whether the compiled function computes attention."""
    torch.cpu._init_amx()
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 40, generator=draw).bfloat16() for length in (70, 300, 300))
    wanted = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    return torch.allclose(call(function, q, k, v, None, 40**-0.5).float(), wanted, atol=1e-2, rtol=1e-2)


KERNEL = native.Kernel(
    why="The attention kernel for AMX",
    source=Path(__file__).with_name("amx_attention.cpp"),
    instructions=(*native.AVX512, "amx-tile", "amx-bf16"),
    here=lambda: supported(),
    needs="Linux on an x86 processor with AMX and AVX512-BF16",
    agrees=agrees,
)


def fits(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Tell whether the kernel computes this attention, and is worth it."""
    if looked_through():
        return False
    given = (q, k, v) if mask is None else (q, k, v, mask)
    if any(type(x) is not Tensor or x.device.type != "cpu" or x.dim() != 4 for x in given):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return False
    if mask is not None and (mask.dtype == torch.bool or mask.shape[1:3] != (1, 1) or mask.shape[3] != k.shape[2]):
        return False
    same = q.shape[:2] == k.shape[:2] and k.shape == v.shape and q.shape[3] == k.shape[3] <= WIDEST
    beside = all(x.dtype == torch.bfloat16 and x.stride(3) == 1 for x in (q, k, v))
    return same and beside and q.shape[0] > 0 and q.shape[2] * k.shape[2] * q.shape[3] >= FEWEST


def by_amx(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return softmax(scale q k^T + mask) v, (B, heads, Lq, d), of what `fits`.

    Args:
        q, k, v: (B, heads, Lq or Lk, d) in bfloat16.
        mask: added to the scores, (1 or B, 1, 1, Lk).
    """
    return call(KERNEL.function(), q, k, v, mask, scale)


def call(function: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Call the compiled function."""
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    out = q.new_empty(batch, queries, heads, size).transpose(1, 2)
    bias = None if mask is None else mask.reshape(-1, keys).float().contiguous()
    step = keys if bias is not None and len(bias) > 1 else 0
    failed = function(
        *(ctypes.c_void_p(x.data_ptr()) for x in (q, k, v, out)),
        ctypes.c_void_p(None if bias is None else bias.data_ptr()),
        native.longs(batch, heads, queries, keys, size),
        *(native.longs(*x.stride()[:3]) for x in (q, k, v, out)),
        ctypes.c_long(step),
        ctypes.c_float(scale),
        ctypes.c_int(torch.get_num_threads()),
    )
    if failed:
        raise MemoryError(f"There is no memory for a copy of {keys} keys and values of {batch * heads} heads.")
    return out
