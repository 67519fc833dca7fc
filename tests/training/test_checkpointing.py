"""Activations that are computed twice give the gradients of those that are kept, dropout included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import langevin
from tests.pipelines import tiny

SMALL = {**tiny.PIXELS, "dropout": 0.3}
CONTROL = {name: value for name, value in tiny.UNET.items() if name not in ("sample_size", "up_block_types")}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {**tiny.text_encoder().config.to_dict(), "attention_dropout": 0.3, "num_hidden_layers": 2}
    return CLIPTextModel(CLIPTextConfig(**config))


def controlled(net: Any) -> Tensor:
    down, middle = net(drawn(2, 4, 8, 8), 7, drawn(2, 5, tiny.WIDTH), drawn(2, 3, 64, 64), return_dict=False)
    return sum((part.square().mean() for part in [*down, middle]), torch.zeros(()))


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "UNet2DConditionModel": (
        lambda: langevin.UNet2DConditionModel(**{**tiny.UNET, "dropout": 0.3}),
        lambda net: net(drawn(2, 4, 8, 8), 7, drawn(2, 5, tiny.WIDTH)).sample.square().mean(),
    ),
    "UNet2DModel": (
        lambda: langevin.UNet2DModel(**SMALL),
        lambda net: net(drawn(2, 3, 8, 8), 7).sample.square().mean(),
    ),
    "ControlNetModel": (lambda: langevin.ControlNetModel(**CONTROL), controlled),
    "text encoder": (encoder, lambda net: net(torch.arange(20).reshape(2, 10)).last_hidden_state.square().mean()),
}


def gradients(net: nn.Module, loss: Callable[[Any], Tensor]) -> list[Tensor | None]:
    net.zero_grad()
    torch.manual_seed(5)
    loss(net).backward()
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_same_bits(name: str) -> None:
    build, loss = NETWORKS[name]
    torch.manual_seed(0)
    net = build().train()
    with torch.no_grad():
        for p in net.parameters():  # the outputs of a new ControlNet are zero, and nothing would reach its inputs
            p.add_(0.02 * torch.randn(p.shape))
    kept = gradients(net, loss)
    runs: list[int] = []
    for part in net.modules():
        part.register_forward_hook(lambda *_: runs.append(1))
    gradients(net, loss)
    once = len(runs)
    enable = getattr(net, "enable_gradient_checkpointing", None) or net.gradient_checkpointing_enable
    enable()
    twice = gradients(net, loss)
    assert len(runs) > 2.3 * once, "nothing was computed twice"
    assert all(one is two is None or one.equal(two) for one, two in zip(kept, twice, strict=True))
    if name != "ControlNetModel":  # which has no dropout
        torch.manual_seed(6)
        loss(net.zero_grad() or net).backward()
        other = [p.grad for p in net.parameters()]
        assert not all(one is two is None or one.equal(two) for one, two in zip(kept, other, strict=True)), "no dropout"
