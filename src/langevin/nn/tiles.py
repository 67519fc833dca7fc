"""Attention on CPUs in tiles of queries, whose products oneDNN computes.

Torch's own kernel for CPUs has its products from a library that leaves the instructions of some processors unused
(`optimization.processor.handed`). Scores and softmax are in float32 here as there, so results differ by rounding.

Gain on two cores of an AMD processor with AVX512-BF16, 2 x 8 heads, 4096 tokens of 40 channels in bfloat16: 131 ms in
place of 269; a step of Stable Diffusion 1.5 at 512 pixels has five of them (`python -m benchmarks --only step-sd15
--level L1 --dtype bfloat16`). Loss: a tile of scores is in memory at once, at most 4 MB and its copies, or two rows if
these are longer; one more rounding in bfloat16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TILE = 1 << 20
"""Scores at once."""
FEWEST = 1 << 22
"""Multiplications for the scores of a head from which on tiles pay."""
PLAIN: tuple[str, list, str] = ("none", [], "")
"""What follows a product: nothing."""
OCTAVES = math.log2(math.e)
"""Powers of two in a power of e: the exponential of torch that is fastest is that of base 2."""
SAFE = 80.0
"""Greatest score of a query, in powers of 2, up to which exponentials, and sums of them times values, are far from the
ends of float32."""
TYPES = (torch.float32, torch.bfloat16)


def fits(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Tell whether attention can be computed in tiles, and is large enough to gain by it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or {x.dtype for x in (q, k, v)} != {q.dtype}:
        return False
    if any(type(x) is not Tensor or x.device.type != "cpu" or x.dim() != 4 for x in (q, k, v)) or q.dtype not in TYPES:
        return False
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, mask)):
        return False
    if mask is not None and (mask.dim() != 4 or mask.shape[2] != 1 or mask.dtype == torch.bool):
        return False
    if mask is not None and bool((mask == -torch.inf).all(-1).any()):  # of nothing that is seen, torch makes zeros
        return False
    same = q.shape[:2] == k.shape[:2] == v.shape[:2] and q.shape[0] > 0
    return same and q.shape[2] * k.shape[2] * q.shape[3] >= FEWEST and torch.backends.mkldnn.is_available()


def tiled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return softmax(scale q k^T + mask) v, (B, heads, Lq, d), of what `fits`.

    The greatest score of a query is subtracted only where exponentials could be too large or too small without. In
    bfloat16 results are rounded once more than torch's.

    Args:
        q, k, v: (B, heads, Lq or Lk, d) in one of `TYPES`.
        mask: added to the scores, (1 or B, 1 or heads, 1, Lk).
    """
    product = torch.ops.mkldnn._linear_pointwise
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    rows = max(TILE // keys, 2)
    out = q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)
    bias = None if mask is None else mask.float().expand(batch, heads, 1, keys)
    for b in range(batch):
        for h in range(heads):
            asked, known = q[b, h].float() * scale, k[b, h].float().contiguous()
            held, bent = v[b, h].t().contiguous(), None if bias is None else bias[b, h, 0].contiguous()
            if bent is None:
                asked *= OCTAVES
            small = float(asked.norm(dim=1).amax() * known.norm(dim=1).amax()) < SAFE
            for first in range(0, queries, rows):
                scores = product(asked[first : first + rows], known, bent, *PLAIN)
                weights = exponentials(scores, small) if bent is None else scores.softmax(1)
                found = product(weights.to(q.dtype), held, None, *PLAIN)
                out[b, h, first : first + rows] = found / weights.sum(1, keepdim=True) if bent is None else found
    return out


def exponentials(scores: Tensor, small: bool) -> Tensor:
    """Return powers of 2 of scores (queries, keys), in their place, those of a query up to a factor.

    Args:
        small: whether no score can be beyond `SAFE`; otherwise the greatest of every query is looked at.
    """
    if not small:
        greatest = scores.amax(1, keepdim=True)
        if float(greatest.abs().amax()) >= SAFE:
            scores -= greatest
    return scores.exp2_()
