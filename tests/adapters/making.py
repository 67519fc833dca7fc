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


def tensors(algorithm: str, shape: tuple[int, ...], seed: int = 3) -> dict[str, Tensor]:
    """Return random tensors of one form of an algorithm for a weight of this shape, as a file holds them."""
    draw, (out, features, *kernel) = drawn(seed), shape
    point, window = [1] * len(kernel), 1
    for size in kernel:
        window *= size
    forms = {
        "lora": lambda: {"down": draw(2, features, *kernel), "up": draw(out, 2, *point)},
        "lora flat": lambda: {"down": draw(2, features), "up": draw(out, 2)},
        "lora point": lambda: {"down": draw(2, features, 1, 1), "up": draw(out, 2, 1, 1)},
        "lora mid": lambda: {
            "down": draw(2, features, *point), "mid": draw(2, 2, *kernel), "up": draw(out, 2, *point)
        },
        "lora bias": lambda: {"down": draw(2, features, *kernel), "up": draw(out, 2, *point), "bias": draw(out)},
        "loha": lambda: {
            "w1_a": draw(out, 2), "w1_b": draw(2, features * window), "w2_a": draw(out, 3),
            "w2_b": draw(3, features * window),
        },
        "loha tucker": lambda: {
            "t1": draw(2, 2, *kernel), "w1_a": draw(2, out), "w1_b": draw(2, features), "t2": draw(2, 2, *kernel),
            "w2_a": draw(2, out), "w2_b": draw(2, features),
        },
        "lokr": lambda: {"w1": draw(2, 4), "w2": draw(out // 2, features // 4, *kernel)},
        "lokr second": lambda: {
            "w1": draw(4, 2), "w2_a": draw(out // 4, 2), "w2_b": draw(2, features // 2 * window)
        },
        "lokr both": lambda: {
            "w1_a": draw(2, 1), "w1_b": draw(1, 4), "w2_a": draw(out // 2, 3), "w2_b": draw(3, features // 4 * window),
        },
        "lokr tucker": lambda: {
            "w1": draw(2, 2), "t2": draw(3, 3, *kernel), "w2_a": draw(3, out // 2), "w2_b": draw(3, features // 2)
        },
        "oft": lambda: {"blocks": draw(out // 4, 4, 4)},
        "oft shared": lambda: {"blocks": draw(4, 4), "rescale": 1 + draw(out, 1, *point)},
        "full": lambda: {"diff": draw(*shape), "diff_bias": draw(out)},
    }  # fmt: skip
    return forms[algorithm]()


class Packed(nn.Module):
    """A linear layer whose weight is not a matrix of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 12
        self.weight = nn.Parameter(torch.zeros(12, 4, dtype=torch.uint8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(*x.shape[:-1], 12)
