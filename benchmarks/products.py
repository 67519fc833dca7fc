"""What float32 products, those of oneDNN and `optimize` bring to a UNet on the CPU: `python -m benchmarks.products`.

One core, and the processor's own clock, so that other programs on the machine count little; two rows, as guidance has
them. Every way is told with its relative L2 distance from float32.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn

import langevin
from langevin.optimization import layers, plan, products

from .kept import FULL, PICTUREBOOK, milliseconds, told

TYPES = ("float32", "bfloat16", "float16")


def widened(unet: nn.Module) -> None:
    """Let a network multiply in float32."""
    layers.widen(unet)


def multiplied(unet: nn.Module) -> None:
    """Let oneDNN multiply where it is faster on this processor."""
    products.quicken(unet)


def packed(unet: nn.Module) -> None:
    """Order and pack the weights of convolutions."""
    plan.optimize(unet)


def frozen(unet: nn.Module) -> None:
    """Have a network compiled with its weights as constants."""
    plan.reorder(unet, torch.channels_last)
    unet.compile(options={"freezing": True})


def compiled(unet: nn.Module) -> None:
    """Have a network compiled as `optimize(compile=True)` does."""
    plan.optimize(unet, compile=True)


def compiled_blocks(unet: nn.Module) -> None:
    """Have the repeated blocks of a network compiled as `optimize(compile="blocks")` does."""
    plan.optimize(unet, compile="blocks")


def undone(unet: nn.Module) -> None:
    """Make a network what it was."""
    plan.deoptimize(unet)
    layers.restore(unet.modules())
    plan.reorder(unet, torch.contiguous_format)
    unet._compiled_call_impl = None


WAYS = {"plain": undone, "float32 products": widened, "oneDNN products": multiplied, "optimize": packed}
COMPILERS = {
    "optimize, compiled": compiled,
    "optimize, blocks compiled": compiled_blocks,
    "compiled, weights frozen": frozen,
}


@torch.no_grad()
def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="a network of Stable Diffusion 1.5's size, random weights")
    parser.add_argument("--compile", action="store_true", help="compile as well; the first call takes minutes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind = langevin.UNet2DConditionModel
    unet = (kind(**FULL) if args.full else kind.from_pretrained(PICTUREBOOK)).eval()
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    given = torch.randn(2, 4, side, side), torch.tensor(500), torch.randn(2, 77, width)
    exact = None
    for name in args.types:
        unet.to(getattr(torch, name))
        inputs = [t.to(unet.dtype) if t.is_floating_point() else t for t in given]
        for way, change in (WAYS | (COMPILERS if args.compile else {})).items():
            undone(unet)
            change(unet)
            call = partial(unet, *inputs)
            first = milliseconds(call, 1)
            told(f"{name}, {way}, then", milliseconds(call, args.rounds))
            found = call().sample.float()
            exact = found if exact is None else exact
            print(
                f"    first {first[0]:.0f} ms, distance {float((found - exact).norm() / exact.norm()):.1e}", flush=True
            )


if __name__ == "__main__":
    main()
