"""Attention by the fastest kernel: which one is taken, how often it is looked for, and where it is left to torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from langevin.core.errors import ConfigError
from langevin.nn import backends, measured
from langevin.nn.backends import attend
from tests.models.tiny import noise

TIMES = {"sdpa": 1.0, "first": 0.9, "second": 0.5, "near": 0.97, "wrong": 0.1, "broken": 0.1, "missing": 0.1}
SDPA = backends.sdpa


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    measured.forget()
    yield
    measured.forget()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that only differ in the time they claim to take, and what was called."""
    called: list[str] = []

    def kernel(name: str) -> backends.Kernel:
        def run(q: Tensor, *rest: Any) -> Tensor:
            called.append(name)
            if name == "broken":
                raise RuntimeError("no kernel for this head")
            return SDPA(q, *rest) + (1.0 if name == "wrong" else 0.0)

        return run

    def resolved(name: str) -> str:
        if name == "missing":
            raise ConfigError("not on this machine")
        return name

    for name in TIMES:
        monkeypatch.setitem(backends.BACKENDS, name, kernel(name))
    monkeypatch.setattr(backends, "resolve_backend", resolved)
    monkeypatch.setattr(measured, "seconds", lambda name, *rest: TIMES[name])
    return called


def tensors(length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    return noise(2, 4, 5, 8), noise(2, 4, length, 8, seed=1), noise(2, 4, length, 8, seed=2)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("first", "second"), "second"),
        (("near",), "sdpa"),
        (("wrong", "first"), "first"),
        (("broken", "missing", "first"), "first"),
        (("missing",), "sdpa"),
    ],
)
def test_the_fastest_that_computes_the_same_is_taken(
    names: tuple[str, ...], taken: str, asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setitem(measured.CANDIDATES, "cpu", names)
    with caplog.at_level(logging.WARNING, logger="langevin"):
        found = attend(*tensors(), backend="measured")
    assert asked[-1] == taken
    assert torch.equal(found, attend(*tensors(), backend="sdpa"))
    assert ("wrong" in names) == any("something else than torch" in record.message for record in caplog.records)


def test_kernels_are_compared_once_for_every_shape_type_and_mask(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(measured.CANDIDATES, "cpu", ("first",))
    q, k, v = tensors()
    attend(q, k, v, backend="measured")
    first = len(asked)
    attend(q + 1, k, v, backend="measured")
    assert asked[first:] == ["first"], "the second call is the kernel's alone"
    for given in ((*tensors(7), None), (q, k, v, noise(2, 1, 1, 9)), (q.bfloat16(), k.bfloat16(), v.bfloat16(), None)):
        asked.clear()
        attend(*given, backend="measured")
        assert len(asked) == first, "looked for anew"


def test_gradients_and_compilers_get_torchs(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measured.CANDIDATES, "cpu", ("second",))
    q, k, v = tensors()
    attend(q.requires_grad_(), k, v, backend="measured").sum().backward()
    assert set(asked) == {"sdpa"} and q.grad is not None
    monkeypatch.undo()
    torch._dynamo.reset()
    whole = torch.compile(lambda q: attend(q, k, v, backend="measured"), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(whole(q), attend(q, k, v, backend="sdpa"))


@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn", "measured"])
@pytest.mark.parametrize("mask", [None, noise(2, 1, 1, 9), noise(2, 1, 5, 9) > -1])
def test_torchs_kernels_by_name_compute_the_same_on_this_machine(name: str, mask: Tensor | None) -> None:
    q, k, v = tensors()
    with backends.attention_backend(name), torch.no_grad():
        assert torch.allclose(attend(q, k, v, mask), attend(q, k, v, mask, backend="sdpa"), atol=1e-6)


@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn"])
def test_torchs_kernels_by_name_compile_and_have_gradients(name: str) -> None:
    torch._dynamo.reset()
    q, k, v = (x.requires_grad_() for x in tensors())
    whole = torch.compile(lambda *given: attend(*given, backend=name), backend="eager", fullgraph=True)
    whole(q, k, v).square().sum().backward()
    found = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    attend(q, k, v, backend="eager").square().sum().backward()
    assert all(torch.allclose(a, x.grad, atol=1e-5) for a, x in zip(found, (q, k, v), strict=True))


@pytest.mark.parametrize("name", ["amx", "measured", "tiled"])
def test_a_transform_of_torch_gets_what_it_can_look_through(name: str) -> None:
    q, k, v = (noise(3, 1, 2, 128, 64, seed=seed).bfloat16() for seed in range(3))
    each = torch.vmap(lambda *given: attend(*given, backend=name))(q, k, v)
    wanted = torch.stack([attend(*given, backend="eager") for given in zip(q, k, v, strict=True)])
    assert torch.allclose(each.float(), wanted.float(), atol=3e-2)


def test_the_shortest_of_several_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])  # calls of 5, 2 and 9 seconds
    monkeypatch.setattr(measured.time, "perf_counter", lambda: next(clock))
    assert measured.seconds("sdpa", *tensors(), None, 0.3) == 2.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fastest_on_a_cuda_device_computes_the_same() -> None:
    q, k, v = (x.cuda().half() for x in tensors())
    with torch.no_grad():
        found, wanted = (attend(q, k, v, backend=name) for name in ("measured", "eager"))
    assert torch.allclose(found, wanted, atol=1e-2)
