"""In which types the processor multiplies by itself. In the others torch converts at every multiplication."""

from __future__ import annotations

import platform
from pathlib import Path

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


def handed() -> frozenset[torch.dtype]:
    """Return the types in which oneDNN multiplies faster than what torch hands products to on this processor.

    Torch has MKL multiply for linear layers in float32 and for attention. On x86 processors with AVX-512 whose maker is
    not MKL's, MKL does not use these instructions.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    if not wide or "Intel" in maker() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    return frozenset({torch.float32, torch.bfloat16}) - converted()


def maker() -> str:
    """Return what tells the maker of the processor, such as "AuthenticAMD"."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(found, platform.processor())


HANDED = handed()
"""What `handed` says of this processor."""


def joined() -> frozenset[torch.dtype]:
    """Return the types in which linear layers gain by being one call of oneDNN, with their bias and their gate.

    That is what is `handed` elsewhere else, and bfloat16 on every x86 processor with AVX-512 that multiplies in it:
    torch has oneDNN compute these products, but copies the bias into the result first, and gates in further passes.
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    if not wide or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return handed()
    return handed() | (frozenset({torch.bfloat16}) - converted())


JOINED = joined()
"""What `joined` says of this processor."""


def prepacks() -> bool:
    """Tell whether convolutions can take weights in the order in which oneDNN reads them."""
    packing = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and hasattr(packing, "_reorder_convolution_weight")
