"""Tiny random ControlNets and adapters with the same weights in the peer and in this library."""

from __future__ import annotations

import diffusers
import torch

import langevin
from tests.pipelines import tiny


def pair(make, seed: int):
    """Return a network of the peer and of this library with the same weights, none of them zero.

    Args:
        make: builds the network from a library.
    """
    torch.manual_seed(seed)
    theirs = make(diffusers).eval()
    with torch.no_grad():
        for values in theirs.parameters():
            if not values.any():
                values.normal_(std=0.2)
    ours = make(langevin).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def controlnets(unet: dict | None = None, seed: int = 0, **options):
    """Return ControlNets, the peer's and this library's, for a UNet of these options."""
    left_out = ("sample_size", "up_block_types")
    given = {name: value for name, value in (unet or tiny.UNET).items() if name not in left_out}
    given |= {"conditioning_embedding_out_channels": (16, 32), **options}
    return pair(lambda library: library.ControlNetModel(**given), 20 + seed)


def adapters(seed: int = 0, **options):
    """Return T2I-Adapters, the peer's and this library's, for `tiny.UNET`."""
    given = {"channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 2, **options}
    return pair(lambda library: library.T2IAdapter(**given), 40 + seed)


def several(pairs):
    """Return pairs of networks as one pair of lists, a single pair as it is."""
    return pairs[0] if len(pairs) == 1 else tuple(map(list, zip(*pairs, strict=True)))
