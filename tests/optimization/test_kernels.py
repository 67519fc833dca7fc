"""Triton kernels compile for devices that are not here, and read and write as many bytes at a time as devices can."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from langevin.core.imports import is_available
from tests.optimization.fresh import fresh_kernels

if not is_available("triton"):
    pytest.skip('needs Triton: pip install "langevin[kernels]"', allow_module_level=True)


def accesses(kernel: Any, constants: dict[str, int], dtype: str, *, odd: tuple[str, ...], capability: int) -> Counter:
    """Compile a kernel for a CUDA device that need not be here; return how often it reads and writes, and how much.

    Args:
        odd: arguments that are no multiples of 16; those that are 1 are among the constants.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"means": "*fp32", "spreads": "*fp32", "centres": "*fp32", "gains": "*fp32", "eps": "fp32"}
    kinds.update(dict.fromkeys(("x", "out", "weight", "bias"), f"*{dtype}"), **dict.fromkeys(constants, "constexpr"))
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    whole = [n for n, kind in signature.items() if kind not in ("constexpr", "fp32") and n not in odd]
    at = {name: (index,) for index, name in enumerate(kernel.arg_names)}
    given = {at[name]: value for name, value in constants.items()}
    source = ASTSource(kernel, signature, given, {at[name]: [["tt.divisibility", 16]] for name in whole})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert made.asm["cubin"]
    return Counter(re.findall(r"(?:ld|st)\.global\S*", made.asm["ptx"]))


@pytest.mark.parametrize("capability, dtype", [(80, "fp32"), (90, "bf16")])
def test_kernels_compile_for_devices_and_read_sixteen_bytes_at_a_time(capability, dtype, tmp_path, monkeypatch) -> None:
    """Either order of dimensions, with a number of channels per group that is no power of two."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    more: dict[str, Any] = {"odd": ("width", "parts"), "capability": capability}
    wide = re.compile(r"\w+\.global\.v4\.b32")
    with fresh_kernels() as k:
        for order, c, p in (("step_p", 4, 1024), ("step_c", 64, 64)):
            tile = {"C": c, "P": p, order: 1}
            reads = accesses(k.measure, tile, dtype, **more)
            assert {name for name in reads if name.startswith("ld")} == {"ld.global.v4.b32"}
            both = accesses(k.normalise, {**tile, "SILU": True}, dtype, **more)
            assert sum(count for name, count in both.items() if wide.match(name)) >= 8
            accesses(k.normalise_group, {"C": 16, "P": 64, order: 1, "SILU": True}, dtype, **more)
        one = dict.fromkeys(("width", "pixels", "step_c", "C", "P"), 1)
        accesses(k.normalise_group, {**one, "SILU": False}, dtype, **more)
        accesses(k.combine, {"C": 16, "N": 16}, dtype, **more)
        assert set(accesses(k.gate, {"B": 1024}, dtype, **more)) == {"ld.global.v4.b32", "st.global.v4.b32"}
