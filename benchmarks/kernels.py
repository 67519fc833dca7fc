"""Triton kernels beside torch's operations and what torch's compiler makes of those: `python -m benchmarks.kernels`.

Needs a CUDA device. Every row is a layer as networks of Stable Diffusion 1.5's size have it. "called" is the time from
Python to Python of one call among many, "device" that of a call inside a recorded graph, where launches cost nothing;
both in microseconds. A kernel is worth its place where it is below both others. The last rows are whole calls of the
UNet with what `optimize` can be asked for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import langevin
from langevin.core.errors import ConfigError
from langevin.nn.transformer import gated_gelu
from langevin.optimization import plan
from langevin.optimization.quantisation import quantise

from .kept import FULL

NORMS = [
    (2, 320, 64, 64),
    (2, 640, 32, 32),
    (2, 1280, 16, 16),
    (2, 2560, 8, 8),
    (1, 512, 64, 64),
    (1, 256, 256, 256),
    (1, 128, 512, 512),
]
"""Inputs of norms in the UNet and in the decoder at 512 pixels; 32 groups each."""
GATES = [(2, 4096, 2560), (2, 1024, 5120), (2, 256, 10240)]
"""Projections in feed-forward networks."""
INSIDE = 10
"""Calls in one recorded graph."""

Call = Callable[[], object]


def microseconds(call: Call, *, device: torch.device, times: int) -> float:
    """Return the time of a call, of `times` in a row, after three that do not count."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for _ in range(3):
        call()
    wait()
    begin = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return 1e6 * (time.perf_counter() - begin) / times


def recorded(call: Call) -> Call:
    """Return a call that replays `INSIDE` of these on the device."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        for _ in range(INSIDE):
            call()
    return graph.replay


def layers(dtype: torch.dtype, device: torch.device, *, norms: list, gates: list) -> Iterator[tuple[str, Call, Call]]:
    """Yield the name of a layer, torch's computation of it and the kernel's."""
    from langevin.optimization import kernels

    for shape in norms:
        for order in (torch.contiguous_format, torch.channels_last):
            norm = nn.GroupNorm(32, shape[1], device=device, dtype=dtype)
            x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=order)
            given = {"eps": norm.eps, "silu": True}

            def plain(x: Tensor = x, norm: nn.GroupNorm = norm) -> Tensor:
                return F.silu(norm(x))

            def kernel(x: Tensor = x, norm: nn.GroupNorm = norm, given: dict = given) -> Tensor:
                return kernels.group_norm(x, 32, norm.weight, norm.bias, **given)

            last = "last" if order is torch.channels_last else "first"
            yield f"group norm, SiLU, {'x'.join(map(str, shape))}, channels {last}", plain, kernel
    for shape in gates:
        x = torch.randn(shape, device=device, dtype=dtype)
        name = f"gated GELU, {'x'.join(map(str, shape))}"
        yield name, lambda x=x: gated_gelu(x), lambda x=x: kernels.gated_gelu(x)


def network(dtype: torch.dtype, device: torch.device, times: int, *, float8: bool) -> None:
    """Print the time of calls of a UNet."""

    def told(name: str) -> None:
        took = microseconds(lambda: unet(x, now, text), device=device, times=times)
        print(f"UNet, {name:60} {took:12.0f}", flush=True)

    unet = langevin.UNet2DConditionModel(**FULL).eval().to(device, dtype)
    x, text = (torch.randn(shape, device=device, dtype=dtype) for shape in ((2, 4, 64, 64), (2, 77, 768)))
    now = torch.tensor(500.0, device=device)
    for asked in ((), ("kernels",), ("graphs",), ("kernels", "graphs")):
        plan.deoptimize(unet)
        plan.optimize(unet, **dict.fromkeys(asked, True))
        told(" and ".join(("optimize", *asked)))
    if float8:
        plan.deoptimize(unet)
        quantise(unet, "float8dq_e4m3_row")
        told("float8")
        unet.compile()
        told("float8, compiled")


@torch.no_grad()
def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--float8", action="store_true", help="the UNet in float8 as well, by torchao")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device here, and kernels are measured on one.")
    dtype, device = getattr(torch, args.dtype), torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.dtype}, microseconds: called, device")
    for name, plain, kernel in layers(dtype, device, norms=NORMS, gates=GATES):
        torch.compiler.reset()
        ways = {"torch": plain, "compiler": torch.compile(plain, dynamic=False), "kernel": kernel}
        for way, call in ways.items():
            called = microseconds(call, device=device, times=args.times)
            inside = microseconds(recorded(call), device=device, times=args.times) / INSIDE
            print(f"{name:58} {way:10} {called:10.1f} {inside:10.1f}", flush=True)
    network(dtype, device, args.times, float8=args.float8)


if __name__ == "__main__":
    main()
