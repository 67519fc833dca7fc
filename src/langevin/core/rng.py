"""Random numbers: every draw comes from a stream that somebody named, never from the global one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch

from .errors import InputError

Generators = torch.Generator | list[torch.Generator] | None


def normal(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Draw standard normal noise of `shape`.

    A generator on the CPU serves every device: the draw happens where the generator lives and is then moved, so a seed
    gives the same noise on every machine. A list draws row k of the batch from generator k. Without a generator the
    stream is seeded from the operating system's entropy; the global stream is neither read nor advanced.

    Raises:
        InputError: when a list does not hold one generator per row, or a generator sits on another accelerator.
    """
    return _drawn(torch.randn, shape, generator, device, dtype)


def uniform(
    shape: Sequence[int],
    *,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Draw numbers evenly from [0, 1); the arguments and errors are those of `normal`."""
    return _drawn(torch.rand, shape, generator, device, dtype)


def _drawn(
    make: Callable[..., torch.Tensor],
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    if generator is None:
        generator = fresh()
    elif isinstance(generator, (list, tuple)):
        if len(generator) == 1:
            return _drawn(make, shape, generator[0], device, dtype)
        if len(generator) != shape[0]:
            raise InputError(f"{len(generator)} generators were given for a batch of {shape[0]}; pass one per image.")
        return torch.cat([_drawn(make, (1, *shape[1:]), g, device, dtype) for g in generator])
    home = generator.device
    if home == device:
        return make(shape, generator=generator, device=home, dtype=dtype)
    device = torch.device(device or "cpu")
    if home.type not in ("cpu", device.type):
        raise InputError(f"The generator lives on {home} and cannot serve {device}; make it on the CPU.")
    return make(shape, generator=generator, device=home, dtype=dtype).to(device)


def fresh() -> torch.Generator:
    """Return a CPU generator seeded from the operating system's entropy."""
    generator = torch.Generator("cpu")
    generator.seed()
    return generator


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator with the given seed.

    Raises:
        InputError: for a seed that torch cannot take.
    """
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"The seed {seed} is out of bounds; take a whole number from -2^63 to 2^64 - 1.")
    return torch.Generator("cpu").manual_seed(int(seed))


def streams(batch: int, *, generator: Generators = None, seed: int | Sequence[int] | None = None) -> Generators:
    """Resolve the public arguments `generator` and `seed` for `batch` images.

    An integer seed gives image k the stream `seed + k`, so image k of a batch is the image that `seed=seed + k` makes
    alone; a list of seeds names every stream.

    Raises:
        InputError: when both are given, a list has another length than the batch, or a seed is no whole number.
    """
    if generator is not None and seed is not None:
        raise InputError("Both `generator` and `seed` were given; pass one of them.")
    if seed is not None:
        generator = [seeded(one) for one in _seeds(seed, batch)]
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch:
            what = "seeds" if seed is not None else "generators"
            raise InputError(f"{len(generator)} {what} were given for {batch} images; pass one per image.")
        return list(generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(
            f"`generator` is a {type(generator).__name__}; "
            "pass torch.Generator().manual_seed(0), a list of them, or seed=0."
        )
    return generator if generator is not None else fresh()


def _seeds(seed: Any, batch: int) -> list[int]:
    """Return the seeds that the argument `seed` means."""
    if isinstance(seed, Integral) and not isinstance(seed, bool):
        return [int(seed) + k for k in range(batch)]
    try:
        listed = [seed] if isinstance(seed, (str, bytes)) else list(seed)
    except TypeError:
        listed = [seed]
    wrong = [one for one in listed if not isinstance(one, Integral) or isinstance(one, bool)]
    if wrong:
        raise InputError(f"`seed` holds {wrong[0]!r}; pass a whole number, seed=0, or a list of them, one per image.")
    return [int(one) for one in listed]


def randn_tensor(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Draw standard normal noise: `normal` under its documented name and argument order."""
    if layout not in (None, torch.strided):
        raise InputError(f"`layout` is {layout}; only strided tensors can be drawn.")
    return normal(shape, generator=generator, device=device, dtype=dtype)
