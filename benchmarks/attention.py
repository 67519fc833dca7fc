"""Kernels of attention beside each other, in milliseconds: `python -m benchmarks.attention [--device cuda]`.

The shapes are those of published networks with guidance, one row each. A kernel that cannot be had on the machine, or
that computes something else than torch's, has no time; `set_attention_backend("measured")` takes the fastest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch

from langevin.nn import measured

SHAPES = [
    (2, 8, 4096, 4096, 40),
    (2, 8, 4096, 77, 40),
    (2, 8, 1024, 1024, 80),
    (2, 8, 256, 256, 160),
    (2, 10, 4096, 4096, 64),
    (2, 20, 1024, 1024, 64),
    (2, 20, 1024, 77, 64),
    (1, 1, 4096, 4096, 512),
]
"""Rows, heads, queries, keys and channels of a head: Stable Diffusion 1.5 at 512 pixels, SDXL at 1024, a decoder."""


def names(device: str) -> Sequence[str]:
    """Return the backends that are compared on a type of device, torch's choice first."""
    return measured.PLAIN, *measured.CANDIDATES[device]


def rows(shapes: Sequence[tuple[int, ...]], device: str, dtype: torch.dtype) -> Iterator[str]:
    """Yield a line of a Markdown table for each shape."""
    for batch, heads, queries, keys, size in shapes:
        draw = torch.Generator().manual_seed(0)
        kept = [torch.randn(batch, n, heads, size, generator=draw) for n in (queries, keys, keys)]
        q, k, v = (tensor.to(device, dtype).transpose(1, 2) for tensor in kept)
        taken = measured.times(names(device), q, k, v, None, size**-0.5)
        cells = [f"{1e3 * taken[name]:.3g}" if name in taken else "" for name in names(device)]
        yield f"| {batch} x {heads} x {queries} x {size}, {keys} keys | {' | '.join(cells)} |"


@torch.no_grad()
def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=tuple(measured.CANDIDATES), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.dtype}\n\n| ms | {' | '.join(names(args.device))} |")
    print("|---" * (1 + len(names(args.device))) + "|")
    for row in rows(SHAPES, args.device, getattr(torch, args.dtype)):
        print(row, flush=True)


if __name__ == "__main__":
    main()
