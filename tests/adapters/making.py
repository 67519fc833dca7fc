"""Small networks and adapters for the tests of `adapters`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from langevin.weights.dialects.parts import Parts


class Net(nn.Module):
    """Two linear layers, a norm and two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 12, 1)
        self.body = nn.ModuleDict(
            {"norm": nn.LayerNorm(12), "first": nn.Linear(12, 16), "last": nn.Linear(16, 6, bias=False)}
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(torch.nn.functional.silu(self.conv(x))).flatten(2).mT
        return self.body["last"](torch.nn.functional.silu(self.body["first"](self.body["norm"](y))))


def net(dtype: torch.dtype = torch.float32) -> Net:
    """Return the seeded network."""
    torch.manual_seed(0)
    return Net().to(dtype).eval()


def sample(dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a seeded input of the network."""
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)).to(dtype)


def digest(model: nn.Module) -> str:
    """Return a hash of names, dtypes and bytes of the state dict."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def drawn(seed: int) -> Callable[..., Tensor]:
    """Return a function that draws tensors of given sizes."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=generator) * 0.3


def lora(layer: nn.Module, rank: int, seed: int, alpha: float | None = None) -> Parts:
    """Return random factors for a linear layer or a convolution."""
    draw, (out, features, *kernel) = drawn(seed), layer.weight.shape
    point = (1,) * len(kernel)
    return Parts("lora", {"down": draw(rank, features, *kernel), "up": draw(out, rank, *point)}, alpha)


def style(model: Net, rank: int = 2, seed: int = 5, alpha: float | None = 1.0) -> dict[str, Parts]:
    """Return a LoRA over all layers that a LoRA fits."""
    layers = {
        "conv": model.conv,
        "point": model.point,
        "body.first": model.body["first"],
        "body.last": model.body["last"],
    }
    return {path: lora(layer, rank, seed + i, alpha) for i, (path, layer) in enumerate(layers.items())}
