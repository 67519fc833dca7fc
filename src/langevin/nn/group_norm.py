"""Group norms in bfloat16, and the SiLU behind them, on CPUs with AVX512-BF16, by a kernel that is compiled there.

The kernel reads a feature map twice and writes it once; torch's norm and SiLU read it four times and write it twice.
The source is `group_norm.cpp`.

Gain on two cores with AMX: 256 channels of 256 x 256 take 4.2 in place of 10.3 ms, 2 x 320 channels of 64 x 64 0.6 in
place of 1.3 (`python -m benchmarks --only vae-decode --level L1 --dtype bfloat16` decodes with it). Loss: results
differ by rounding, of which there is one less.
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

LANES = 16
"""Channels that the processor takes at once; their number has to be a multiple."""


def supported() -> bool:
    """Tell whether the processor has AVX512-BF16, and the system is one that the kernel is written for."""
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return here and torch.cpu._is_avx512_bf16_supported()


def agrees(function: Any) -> bool:
    """Tell whether the compiled function computes group norms."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw).bfloat16() for shape in ((2, 32, 9, 7), (32,), (32,)))
    x = x.contiguous(memory_format=torch.channels_last)
    wanted = torch.nn.functional.silu(torch.nn.functional.group_norm(x.float(), 4, weight.float(), bias.float()))
    found = call(function, x, 4, weight, bias, 1e-5, silu=True)
    return torch.allclose(found.float(), wanted, atol=2e-2, rtol=2e-2)


KERNEL = native.Kernel(
    why="The kernel of group norms",
    source=Path(__file__).with_name("group_norm.cpp"),
    instructions=native.AVX512,
    here=lambda: supported(),
    needs="Linux on an x86 processor with AVX512-BF16",
    agrees=agrees,
)


def fits(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Tell whether the kernel computes this group norm."""
    if looked_through():
        return False
    if weight is None or bias is None or type(x) is not Tensor or x.dim() != 4 or x.numel() <= len(x) * groups:
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias)):
        return False
    alike = all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in (x, weight, bias))
    beside = x.is_contiguous(memory_format=torch.channels_last) and weight.is_contiguous() and bias.is_contiguous()
    return alike and beside and x.shape[1] % LANES == 0 and x.shape[1] % groups == 0


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
    """Return the group norm of x (B, C, H, W), with a SiLU behind it if asked, of what `fits`."""
    return call(KERNEL.function(), x, groups, weight, bias, eps, silu=silu)


def call(function: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
    """Call the compiled function."""
    batch, channels, height, width = x.shape
    out = torch.empty_like(x, memory_format=torch.channels_last)
    failed = function(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, out, weight, bias)),
        *(ctypes.c_long(number) for number in (batch, height * width, channels, groups)),
        ctypes.c_float(eps),
        ctypes.c_int(silu),
        ctypes.c_int(torch.get_num_threads()),
    )
    if failed:
        raise MemoryError(f"There is no memory for the moments of {channels} channels.")
    return out
