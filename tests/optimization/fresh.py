"""The module of kernels imported anew: it is what Triton was told to be when it was imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from langevin import optimization

KERNELS = "langevin.optimization.kernels"


@contextmanager
def fresh_kernels() -> Iterator[Any]:
    """Import the kernels anew for the time of the context."""
    before = sys.modules.pop(KERNELS, None)
    vars(optimization).pop("kernels", None)
    try:
        yield importlib.import_module(KERNELS)
    finally:
        del sys.modules[KERNELS], optimization.kernels
        if before is not None:
            sys.modules[KERNELS] = optimization.kernels = before


@contextmanager
def interpreted_kernels() -> Iterator[Any]:
    """Import the kernels for Triton's interpreter, together with what they use of Triton's own.

    The interpreter puts its own functions into Triton's modules; all that were there are put back.
    """
    import triton
    import triton.language as tl

    owners: list[Any] = [tl, tl.core, tl.math, tl.standard, tl.core.tensor, tl.core.tensor_descriptor_base]
    before = [dict(vars(owner)) for owner in owners]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in (tl, tl.standard):
            for name, function in list(vars(module).items()):
                if isinstance(function, triton.runtime.JITFunction):
                    patch.setattr(module, name, triton.jit(function.fn))
        try:
            with fresh_kernels() as kernels:
                yield kernels
        finally:
            for owner, was in zip(owners, before, strict=True):
                for name, value in list(vars(owner).items()):
                    if name not in was:
                        delattr(owner, name)
                    elif value is not was[name]:
                        setattr(owner, name, was[name])
