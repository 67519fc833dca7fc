"""Attention that also reads tokens of pictures, by keys and values of its own: decoupled cross-attention.

Source: Ye et al. 2023 (2308.06721), equation 5: the result of each adapter, times its scale, is added to the text's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import InputError
from .attention import Attention
from .backends import attend
from .processors import report_attention_op

Scale = float | Sequence[float]
"""Weight of an adapter, or of each of its pictures where they have masks."""


class IPAdapterAttnProcessor(nn.Module):
    """Cross-attention to the text and, with weights of its own, to the tokens of pictures; in plain tensor operations.

    The tokens come as the keyword `ip_hidden_states`, one tensor (B, pictures, tokens, width) per adapter, or as the
    second of a pair in place of the context. Masks (1, pictures, height, width) say where a picture counts.

    Args:
        hidden_size: width of the attention.
        cross_attention_dim: width of the tokens; None is `hidden_size`.
        num_tokens: tokens per picture, one number per adapter.
        scale: weight of the adapters, one for all or one each.
    """

    backend: str | None = "eager"
    slice_size: int | None = None

    def __init__(
        self,
        hidden_size: int,
        cross_attention_dim: int | None = None,
        num_tokens: int | Sequence[int] = (4,),
        scale: float | Sequence[Scale] = 1.0,
    ) -> None:
        super().__init__()
        self.num_tokens = (num_tokens,) if isinstance(num_tokens, int) else tuple(num_tokens)
        self.hidden_size, self.cross_attention_dim = hidden_size, cross_attention_dim or hidden_size
        for name in ("to_k_ip", "to_v_ip"):
            layers = (nn.Linear(self.cross_attention_dim, hidden_size, bias=False) for _ in self.num_tokens)
            self.add_module(name, nn.ModuleList(layers))
        self.scale = scale

    @property
    def scale(self) -> tuple[Scale, ...]:
        """The weight of every adapter; change it by setting all of them."""
        return self._scale

    @scale.setter
    def scale(self, scale: float | Sequence[Scale]) -> None:
        """Set the weights, in place, so that a compiled network need not be compiled again.

        Raises:
            InputError: for another number of weights than adapters.
        """
        each = [scale] * len(self.num_tokens) if isinstance(scale, (int, float)) else list(scale)
        if len(each) != len(self.num_tokens):
            raise InputError(f"scale has {len(each)} entries for {len(self.num_tokens)} IP-Adapters")
        self._scale = tuple(float(one) if isinstance(one, (int, float)) else tuple(map(float, one)) for one in each)
        for i, value in enumerate(self._scale):
            new, old = torch.tensor(value, dtype=torch.float32, device="cpu"), getattr(self, f"scale_{i}", None)
            if old is not None and old.shape == new.shape:
                old.copy_(new)
            else:
                self.register_buffer(f"scale_{i}", new if old is None else new.to(old.device), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move and cast; the scales stay float32, since half precision rounds them."""
        super()._apply(fn, recurse)
        for i, value in enumerate(self._scale):
            moved = self._buffers[f"scale_{i}"]
            if moved.dtype != torch.float32:
                self._buffers[f"scale_{i}"] = torch.tensor(value, dtype=torch.float32, device=moved.device)
        return self

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, Sequence[Tensor]] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ip_hidden_states: Sequence[Tensor] | None = None,
        ip_adapter_masks: Sequence[Tensor | None] | Tensor | None = None,
    ) -> Tensor:
        """Return the attention's output, same shape as `hidden_states`; without pictures that of the text alone."""
        if isinstance(encoder_hidden_states, tuple):
            encoder_hidden_states, ip_hidden_states = encoder_hidden_states
        more = None
        if ip_hidden_states is not None:
            masks = masks_of(ip_adapter_masks, [tokens.shape[1] for tokens in ip_hidden_states])
            more = partial(self.look, attn, ip_hidden_states, masks)
        return attn.compute(
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            backend=self.backend,
            slice_size=self.slice_size,
            more=more,
        )

    def look(
        self, attn: Attention, pictures: Sequence[Tensor], masks: Sequence[Tensor | None], q: Tensor, out: Tensor
    ) -> Tensor:
        """Return `out` and what the queries see of the pictures, both (B, heads, Lq, d)."""
        for i, (tokens, mask) in enumerate(zip(pictures, masks, strict=True)):
            if torch.compiler.is_compiling() or not self.is_idle(i):
                scale = self.get_buffer(f"scale_{i}")
                if mask is None:
                    out = out + scale * self.read(attn, i, q, tokens.flatten(1, 2))
                    continue
                small = downsample_mask(mask[0].to(q.device, torch.float32), q.shape[2]).to(q.dtype)
                for j, seen in enumerate(tokens.unbind(1)):
                    found = self.read(attn, i, q, seen) * small[j, :, None]
                    out = out + (scale[j] if scale.dim() else scale) * found
        return out

    def read(self, attn: Attention, i: int, q: Tensor, tokens: Tensor) -> Tensor:
        """Return what queries find in tokens (B, L, width) with the keys and values of one adapter."""
        k, v = (attn.head_to_batch_dim(layers[i](tokens), out_dim=4) for layers in (self.to_k_ip, self.to_v_ip))
        slices = self.slice_size or attn.slice_size
        return attend(q, k, v, scale=attn.scale, backend=attn._backend(self.backend), slice_size=slices)

    def is_idle(self, i: int) -> bool:
        """Tell whether the weight of an adapter is 0, so that it need not be asked."""
        value = self._scale[i]
        return not any(value) if isinstance(value, tuple) else value == 0


class IPAdapterAttnProcessor2_0(IPAdapterAttnProcessor):
    """The same with the backend of the model or of the library: torch's fused attention unless another was chosen."""

    backend: str | None = None


class IPAdapterXFormersAttnProcessor(IPAdapterAttnProcessor):
    """The same with the xformers package, which picks its kernel itself."""

    backend: str | None = "xformers"

    def __init__(
        self,
        hidden_size: int,
        cross_attention_dim: int | None = None,
        num_tokens: int | Sequence[int] = (4,),
        scale: float | Sequence[Scale] = 1.0,
        attention_op: object = None,
    ) -> None:
        from ..core.imports import require

        require("xformers", why="IPAdapterXFormersAttnProcessor")
        report_attention_op(attention_op)
        super().__init__(hidden_size, cross_attention_dim, num_tokens, scale)


def masks_of(masks: Sequence[Tensor | None] | Tensor | None, pictures: Sequence[int]) -> list[Tensor | None]:
    """Return one mask (1, pictures, height, width) or None per adapter, from a list or from one tensor with a row each.

    Args:
        pictures: number of pictures of each adapter.

    Raises:
        InputError: for another number of masks than adapters or pictures, or another shape.
    """
    if masks is None:
        return [None] * len(pictures)
    rows = list(masks[:, None]) if isinstance(masks, Tensor) else list(masks)
    if len(rows) != len(pictures):
        raise InputError(
            f"ip_adapter_masks has {len(rows)} entries for {len(pictures)} IP-Adapters; several pictures of one "
            "adapter have their masks in one tensor (1, pictures, height, width) inside a list"
        )
    for mask, count in zip(rows, pictures, strict=True):
        if mask is not None and (mask.dim() != 4 or mask.shape[:2] != (1, count)):
            raise InputError(
                f"an entry of ip_adapter_masks has shape {tuple(mask.shape)}; this adapter has {count} picture(s) and "
                f"needs (1, {count}, height, width)"
            )
    return rows


def downsample_mask(mask: Tensor, positions: int) -> Tensor:
    """Return masks (n, height, width) at the resolution of an attention, (n, positions), by bicubic interpolation.

    The height is the one that fits the masks' aspect ratio; where none fits, the nearest divisor of `positions`.
    """
    height, width = mask.shape[-2:]
    ideal = math.sqrt(positions * height / width)
    rows = max(int(ideal), 1)
    rows += positions % rows != 0
    if positions % rows:
        rows = min((n for n in range(1, positions + 1) if positions % n == 0), key=lambda n: abs(n - ideal))
    small = F.interpolate(mask[None], size=(rows, positions // rows), mode="bicubic")
    return small[0].flatten(1)
