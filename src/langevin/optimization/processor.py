"""In which types the processor multiplies by itself. In the others torch converts at every multiplication."""

from __future__ import annotations

import platform

import torch

HALF = (torch.bfloat16, torch.float16)
PACKED = (torch.float32, *HALF)
"""Types of weights that oneDNN packs."""
X86 = ("x86_64", "amd64", "i386", "i686")


def converted() -> frozenset[torch.dtype]:
    """Return the half-precision types that this processor has no instructions to multiply in.

    Bfloat16 needs AMX or AVX512-BF16, float16 AMX-FP16 or AVX512-FP16. Of processors other than x86, where nothing was
    measured, none is returned.
    """
    if platform.machine().lower() not in X86:
        return frozenset()
    asked = {
        torch.bfloat16: ("_is_amx_tile_supported", "_is_avx512_bf16_supported"),
        torch.float16: ("_is_amx_fp16_supported",),
    }
    here = {dtype for dtype, names in asked.items() if any(getattr(torch.cpu, name, bool)() for name in names)}
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported():
        here.add(torch.float16)
    return frozenset(HALF) - here


CONVERTED = converted()
"""What `converted` says of this processor. Layers read it at every call."""


def prepacks() -> bool:
    """Tell whether convolutions can take weights in the order in which oneDNN reads them."""
    packing = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and hasattr(packing, "_reorder_convolution_weight")
