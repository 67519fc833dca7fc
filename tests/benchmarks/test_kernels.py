"""What the benchmark of kernels times is the same by torch and by a kernel, and it says where it cannot run."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import kernels
from langevin.core.errors import ConfigError
from langevin.core.imports import is_available
from tests.optimization.fresh import interpreted_kernels

CPU = torch.device("cpu")


@pytest.mark.skipif(not is_available("triton"), reason='needs Triton: pip install "langevin[kernels]"')
@torch.no_grad()
def test_both_ways_compute_the_same_and_are_timed() -> None:
    with interpreted_kernels():
        found = list(kernels.layers(torch.float32, CPU, norms=[(1, 32, 2, 3)], gates=[(1, 2, 8)]))
        assert [name.partition(",")[0] for name, *_ in found] == ["group norm", "group norm", "gated GELU"]
        for _, plain, kernel in found:
            torch.testing.assert_close(kernel(), plain())
            assert kernels.microseconds(kernel, device=CPU, times=1) > 0


def test_without_a_device_it_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA device"):
        kernels.main()
