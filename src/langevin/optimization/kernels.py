"""Triton kernels for what lies between convolutions and products, each of which is bound by memory.

The group norm takes feature maps in either order, channels first or last, and writes them in the same; its statistics
are in float32, and a SiLU behind it costs no further pass. The gated GELU reads the projection once and writes half of
it. Both round once, where torch's operations round after each; so in half precision they differ from those by one
rounding, and in float32 by 1e-5 at most.

Nothing here is measured: the tests run the kernels in Triton's interpreter, on the CPU, where they prove the
arithmetic and no speed. On a machine with a CUDA device `python -m benchmarks.kernels` measures each of them beside
torch's own operations and beside what torch's compiler makes of those. Loss: the first call of each kind of input
compiles, and a launch from Python takes some microseconds, so that small feature maps may take longer than before.

Imported only where kernels are asked for, since it imports Triton. None of the networks here modulates layer norms or
normalises and rotates queries and keys, so there are no kernels for that.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Numbers that a program holds at a time, 32 in each thread."""
SHORT = 64
"""Channels of a tile at most, where channels are next to each other in memory."""
PARTS = 256
"""Into how many parts the pixels are divided at most when their moments are taken."""
SPAN = 1024
"""Numbers of a row that a program of the gated GELU makes."""


@triton.jit
def moments(x: tl.tensor, there: tl.tensor, count: tl.tensor) -> tuple:
    """Return the mean of what there is of a tile, and the sum of the squared distances from it."""
    mean = tl.sum(x) / count
    away = tl.where(there, x - mean, 0.0)
    return mean, tl.sum(away * away)


@triton.jit
def joined(
    count: tl.tensor,
    mean: tl.tensor,
    spread: tl.tensor,
    more: tl.tensor,
    new_mean: tl.tensor,
    new_spread: tl.tensor,
) -> tuple:
    """Return number, mean and spread of two sets together (Chan et al. 1979)."""
    total = count + more
    away = new_mean - mean
    return total, mean + away * more / total, spread + new_spread + away * away * count * more / total


@triton.jit
def write(out: tl.tensor, at: tl.tensor, there: tl.tensor, y: tl.tensor, SILU: tl.constexpr) -> None:
    """Write a tile, or the SiLU of it."""
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(out + at, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def normalise_group(
    x: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    groups: tl.tensor,
    width: tl.tensor,
    pixels: tl.tensor,
    step_c: tl.tensor,
    step_p: tl.tensor,
    eps: tl.tensor,
    SILU: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
) -> None:
    """Normalise one group of channels that fits into one tile; program (image * groups)."""
    image, first = tl.program_id(0) // groups, tl.program_id(0) % groups * width
    inside = tl.arange(0, C)[:, None]
    channel, pixel = first + inside, tl.arange(0, P)[None, :]
    there = (inside < width) & (pixel < pixels)
    at = image.to(tl.int64) * (groups * width * pixels) + channel * step_c + pixel * step_p
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    gain = tl.load(weight + channel, mask=inside < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=inside < width, other=0.0).to(tl.float32)
    count = width * pixels
    mean, spread = moments(value, there, count)
    write(out, at, there, (value - mean) * tl.rsqrt(spread / count + eps) * gain + shift, SILU)


@triton.jit
def measure(
    x: tl.tensor,
    means: tl.tensor,
    spreads: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    span: tl.tensor,
    step_c: tl.tensor,
    step_p: tl.tensor,
    C: tl.constexpr,
    P: tl.constexpr,
) -> None:
    """Write the moments of every channel over `span` pixels; program (part, block of channels, image)."""
    part, image = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    begin = image.to(tl.int64) * (channels * pixels)
    count = 0.0
    mean = tl.full((C,), 0.0, tl.float32)
    spread = tl.full((C,), 0.0, tl.float32)
    for first in range(part * span, tl.minimum(part * span + span, pixels), P):
        pixel = first + tl.arange(0, P)[None, :]
        there = (channel[:, None] < channels) & (pixel < pixels)
        at = begin + channel[:, None] * step_c + pixel * step_p
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        more = tl.minimum(P, pixels - first).to(tl.float32)
        new_mean = tl.sum(value, 1) / more
        away = tl.where(there, value - new_mean[:, None], 0.0)
        count, mean, spread = joined(count, mean, spread, more, new_mean, tl.sum(away * away, 1))
    to = (image * tl.num_programs(0) + part) * channels + channel
    tl.store(means + to, mean, mask=channel < channels)
    tl.store(spreads + to, spread, mask=channel < channels)


@triton.jit
def combine(
    means: tl.tensor,
    spreads: tl.tensor,
    weight: tl.tensor,
    centres: tl.tensor,
    gains: tl.tensor,
    groups: tl.tensor,
    width: tl.tensor,
    pixels: tl.tensor,
    span: tl.tensor,
    parts: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Write what to take from every channel, and what to multiply it by; program (image * groups)."""
    image, first = tl.program_id(0) // groups, tl.program_id(0) % groups * width
    inside = tl.arange(0, C)
    channel = first + inside
    count = 0.0
    mean = 0.0
    spread = 0.0
    for begin in range(0, parts, N):
        part = begin + tl.arange(0, N)[:, None]
        there = (part < parts) & (inside[None, :] < width)
        at = (image * parts + part) * (groups * width) + channel[None, :]
        value = tl.load(means + at, mask=there, other=0.0)
        each = tl.where(there, tl.minimum(span, pixels - part * span), 0).to(tl.float32)
        more = tl.sum(each)
        new_mean = tl.sum(value * each) / more
        away = value - new_mean
        new_spread = tl.sum(tl.load(spreads + at, mask=there, other=0.0) + away * away * each)
        count, mean, spread = joined(count, mean, spread, more, new_mean, new_spread)
    gain = tl.load(weight + channel, mask=inside < width, other=0.0).to(tl.float32) * tl.rsqrt(spread / count + eps)
    tl.store(centres + image * groups * width + channel, gain * 0.0 + mean, mask=inside < width)
    tl.store(gains + image * groups * width + channel, gain, mask=inside < width)


@triton.jit
def normalise(
    x: tl.tensor,
    out: tl.tensor,
    centres: tl.tensor,
    gains: tl.tensor,
    bias: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    step_c: tl.tensor,
    step_p: tl.tensor,
    SILU: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
) -> None:
    """Normalise a tile; program (block of pixels, block of channels, image)."""
    image = tl.program_id(2)
    channel = tl.program_id(1) * C + tl.arange(0, C)[:, None]
    pixel = tl.program_id(0) * P + tl.arange(0, P)[None, :]
    there = (channel < channels) & (pixel < pixels)
    at = image.to(tl.int64) * (channels * pixels) + channel * step_c + pixel * step_p
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    centre = tl.load(centres + image * channels + channel, mask=channel < channels, other=0.0)
    gain = tl.load(gains + image * channels + channel, mask=channel < channels, other=0.0)
    shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    write(out, at, there, (value - centre) * gain + shift, SILU)


@triton.jit
def gate(x: tl.tensor, out: tl.tensor, half: tl.tensor, B: tl.constexpr) -> None:
    """Multiply the first half of a row by the GELU of the second."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * B + tl.arange(0, B)
    there = column < half
    value = tl.load(x + row * 2 * half + column, mask=there, other=0.0).to(tl.float32)
    given = tl.load(x + row * 2 * half + half + column, mask=there, other=0.0).to(tl.float32)
    opened = 0.5 * given * (1.0 + tl.erf(given * 0.7071067811865476))
    tl.store(out + row * half + column, (value * opened).to(out.dtype.element_ty), mask=there)


def channels_last(x: Tensor) -> bool | None:
    """Tell whether the channels of (B, C, ...) are the dimension without gaps, None where neither order is."""
    if x.is_contiguous():
        return False
    return True if x.movedim(1, -1).is_contiguous() else None


def on(x: Tensor) -> Any:
    """Return the context in which kernels are launched on the device of a tensor."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, *, eps: float, silu: bool) -> Tensor:
    """Return the group norm (Wu & He 2018) of x (B, C, ...), in its type and order of dimensions.

    Args:
        x: see `channels_last`; less than 2**31 numbers per row of the batch.
        weight, bias: (C).
        silu: return x * sigmoid(x) of it.
    """
    batch, channels, pixels = *x.shape[:2], x[0, 0].numel()
    last, out, width = channels_last(x), torch.empty_like(x), channels // groups
    steps = (1, channels) if last else (pixels, 1)
    c, p = triton.next_power_of_2(width), triton.next_power_of_2(pixels)
    with on(x):
        if c * p <= TILE:
            shape = (groups, width, pixels, *steps)
            normalise_group[(batch * groups,)](x, out, weight, bias, *shape, eps, SILU=silu, C=c, P=p)
            return out
        most = triton.next_power_of_2(channels)
        tile = min(SHORT, most) if last else min(max(1, TILE // p), most)
        block: dict[str, Any] = {"C": tile, "P": min(TILE // tile, p)}
        tiles, blocks = triton.cdiv(pixels, block["P"]), triton.cdiv(channels, tile)
        span = block["P"] * triton.cdiv(tiles, PARTS)
        parts = triton.cdiv(pixels, span)
        means, spreads = x.new_empty(2, batch, parts, channels, dtype=torch.float32)
        centres, gains = x.new_empty(2, batch, channels, dtype=torch.float32)
        measure[(parts, blocks, batch)](x, means, spreads, channels, pixels, span, *steps, **block)
        made = (means, spreads, weight, centres, gains)
        combine[(batch * groups,)](*made, groups, width, pixels, span, parts, eps, C=c, N=max(1, min(16, TILE // c)))
        read = (x, out, centres, gains, bias)
        normalise[(tiles, blocks, batch)](*read, channels, pixels, *steps, SILU=silu, **block)
    return out


def gated_gelu(x: Tensor) -> Tensor:
    """Multiply the first half of the last dimension of x by the exact GELU of the second (Shazeer 2020).

    Args:
        x: (..., 2H), contiguous.
    """
    half = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], half)
    with on(x):
        gate[(out.numel() // half, triton.cdiv(half, SPAN))](x, out, half, B=min(SPAN, triton.next_power_of_2(half)))
    return out
