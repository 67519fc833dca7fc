"""Blocks that are computed again in the backward pass: the bits of torch's checkpointing, and nothing kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from langevin.core.errors import ConfigError
from langevin.nn.checkpointing import recomputed


def torchs(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(block, *args, use_reentrant=False, **kwargs)


class Block(nn.Module):
    """Draws, keeps an output (softmax), and ends with a product that nothing in the backward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)
        self.wide = False

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        hidden = self.drop(self.first(x).softmax(-1)) + shift
        return self.last(hidden * hidden.exp() if self.wide else hidden.exp())


def block() -> Block:
    torch.manual_seed(0)
    return Block()


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 6, requires_grad=True), torch.randn(6)


def gradients(run: Callable[..., Any], *, frozen: str = "", precision: bool = False) -> list[Tensor]:
    net, (x, shift) = block(), inputs()
    for name, p in net.named_parameters():
        p.requires_grad_(not frozen or not name.startswith(frozen))
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision):
        y = run(net, run(net, x, shift=shift), shift=shift)
    y.float().square().sum().backward()  # without autocast, as in the threads of an accelerator
    return [x.grad, *(p.grad for p in net.parameters() if p.requires_grad), torch.rand(1)]  # type: ignore[list-item]


@pytest.mark.parametrize("frozen", ["", "first", "last", "f", "l"])
@pytest.mark.parametrize("precision", [False, True])
def test_the_bits_of_torch(frozen: str, precision: bool) -> None:
    plain = gradients(lambda net, *args, **kwargs: net(*args, **kwargs), frozen=frozen, precision=precision)
    for run in (torchs, recomputed):
        found = gradients(run, frozen=frozen, precision=precision)
        assert len(found) == len(plain) and all(map(torch.equal, found, plain)), run


def test_nothing_is_kept_and_the_last_product_is_not_computed_again() -> None:
    net, (x, shift) = block(), inputs()
    seen: list[Any] = []
    for part in (net.first, net.last):
        part.register_forward_hook(lambda part, _, y: seen.append((part, weakref.ref(y))))
    y = recomputed(net, x, shift=shift)
    assert [part for part, _ in seen] == [net.first, net.last] and seen[0][1]() is None
    y.sum().backward()
    assert [part for part, _ in seen[2:]] == [net.first] and seen[2][1]() is None


def test_backward_twice_and_gradients_of_gradients() -> None:
    net, (x, shift) = block(), inputs()
    y = recomputed(net, x, shift=shift).square().sum()
    once, twice = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    found = []
    for run in (torchs, recomputed):
        torch.manual_seed(3)
        first = torch.autograd.grad(run(net, x, shift=shift).square().sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert torch.equal(*found)


def test_what_needs_no_gradient_is_not_computed_again() -> None:
    net, (x, shift) = block(), inputs()
    net.requires_grad_(False)
    runs: list[int] = []
    net.first.register_forward_hook(lambda *_: runs.append(1))
    scale = torch.ones((), requires_grad=True)
    (recomputed(net, x.detach(), shift=shift) * scale).sum().backward()
    assert len(runs) == 1


def test_changes_in_between_are_refused() -> None:
    net, (x, shift) = block(), inputs()
    y = recomputed(net, x, shift=shift)
    net.wide = True
    with pytest.raises(ConfigError, match="in between"):
        y.sum().backward()
    net.wide = False
    y = recomputed(net, x, shift=shift)
    shift.add_(1)
    with pytest.raises(ConfigError, match="inputs were changed"):
        y.sum().backward()


def test_compiled_graphs_take_that_of_torch() -> None:
    net, (x, shift) = block(), inputs()
    net.drop.p = 0.0
    torch.compiler.reset()
    run = torch.compile(lambda x: recomputed(net, x, shift=shift), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(run(x).square().sum(), x)[0]
    torch.testing.assert_close(found, torch.autograd.grad(net(x, shift=shift).square().sum(), x)[0])
