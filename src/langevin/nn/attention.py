"""One attention module for every network here, with the parameter names of published checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, did_you_mean
from .backends import attend, attention_weights

CROSS_NORMS = ("layer_norm", "group_norm")
CONTEXT_GROUPS = 32
Seen = tuple[Tensor, Tensor, "Tensor | None"]
"""Keys and values (B, heads, Lk, d), and the mask of their positions."""


class Attention(nn.Module):
    """Multi-head self- or cross-attention over tokens (B, L, C) or feature maps (B, C, H, W).

    Parameters are named `to_q`, `to_k`, `to_v`, `to_out.0` (`to_out.1` is a dropout of 0), and where asked for
    `group_norm` (before the queries), `norm_cross` (on the context), `add_k_proj`, `add_v_proj` (a context whose keys
    and values are put in front of those of the tokens themselves; `added_kv_proj_dim` is its width).
    `only_cross_attention` then leaves out the tokens' own keys and values.

    The computation is handed to `self.processor`, which may be replaced by any callable of the documented form
    `processor(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs)`.

    Attributes:
        kept: gives what a context becomes without computing it anew, or None where it has to be computed.
    """

    kept: Callable[[Attention, Tensor, Tensor | None], Seen | None] | None = None

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        *,
        heads: int = 8,
        dim_head: int = 64,
        bias: bool = False,
        out_bias: bool = True,
        upcast_attention: bool = False,
        upcast_softmax: bool = False,
        cross_attention_norm: str | None = None,
        added_kv_proj_dim: int | None = None,
        norm_num_groups: int | None = None,
        eps: float = 1e-5,
        only_cross_attention: bool = False,
        rescale_output_factor: float = 1.0,
        residual_connection: bool = False,
    ) -> None:
        super().__init__()
        if only_cross_attention and added_kv_proj_dim is None:
            raise ConfigError("only_cross_attention=True needs added_kv_proj_dim: else there is nothing to attend to")
        self.query_dim = query_dim
        self.is_cross_attention = cross_attention_dim is not None
        self.cross_attention_dim = query_dim if cross_attention_dim is None else cross_attention_dim
        self.heads = self.sliceable_head_dim = heads
        self.dim_head = dim_head
        self.inner_dim = self.inner_kv_dim = heads * dim_head
        self.scale = dim_head**-0.5
        self.upcast_attention, self.upcast_softmax = upcast_attention, upcast_softmax
        self.added_kv_proj_dim = added_kv_proj_dim
        self.only_cross_attention = only_cross_attention
        self.rescale_output_factor = rescale_output_factor
        self.residual_connection = residual_connection
        self.backend: str | None = None
        self.slice_size: int | None = None

        self.group_norm = None if norm_num_groups is None else nn.GroupNorm(norm_num_groups, query_dim, eps=eps)
        self.spatial_norm = self.norm_q = self.norm_k = None
        self.norm_cross = self._context_norm(cross_attention_norm)
        self.to_q = nn.Linear(query_dim, self.inner_dim, bias=bias)
        self.to_k = self.to_v = self.add_k_proj = self.add_v_proj = None
        if not only_cross_attention:
            self.to_k = nn.Linear(self.cross_attention_dim, self.inner_dim, bias=bias)
            self.to_v = nn.Linear(self.cross_attention_dim, self.inner_dim, bias=bias)
        if added_kv_proj_dim is not None:
            self.add_k_proj = nn.Linear(added_kv_proj_dim, self.inner_dim)
            self.add_v_proj = nn.Linear(added_kv_proj_dim, self.inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(self.inner_dim, query_dim, bias=out_bias), nn.Dropout(0.0)])
        self.set_processor(default_processor(self))

    def _context_norm(self, kind: str | None) -> nn.Module | None:
        if kind is None:
            return None
        width = self.added_kv_proj_dim or self.cross_attention_dim
        if kind == "layer_norm":
            return nn.LayerNorm(width)
        if kind == "group_norm":
            return nn.GroupNorm(CONTEXT_GROUPS, width, eps=1e-5)
        raise ConfigError(f"cross_attention_norm is {kind!r}{did_you_mean(kind, CROSS_NORMS)}")

    # -- the computation ------------------------------------------------------------------------------------------

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """Attend from `hidden_states` to `encoder_hidden_states`, or to itself where that is None.

        `attention_mask` is boolean or additive, (B, Lk), (B, 1, Lk) or (B, Lq, Lk). Further keywords reach the
        processor if its call accepts them.
        """
        if cross_attention_kwargs and self._accepts is not None:
            cross_attention_kwargs = {k: v for k, v in cross_attention_kwargs.items() if k in self._accepts}
        return self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **cross_attention_kwargs,
        )

    def compute(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        backend: str | None = None,
        slice_size: int | None = None,
        more: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The built-in computation: norms, projections, `attend`, output projection, residual.

        `backend` and `slice_size` override those of the module, which override the library's default. `more` adds to
        what attention gives, from the queries and the result so far, both (B, heads, Lq, d).
        """
        residual = hidden_states
        x = hidden_states if self.group_norm is None else self._normalise(hidden_states)
        if x.dim() == 4:
            x = x.flatten(2).transpose(1, 2)
        q = self._split(self.to_q(x))
        k, v, attention_mask = self._seen(x, encoder_hidden_states, attention_mask)
        out = attend(
            q,
            k,
            v,
            attention_mask,
            scale=self.scale,
            backend=self._backend(backend),
            slice_size=self.slice_size if slice_size is None else slice_size,
        )
        if more is not None:
            out = more(q, out)
        out = self.to_out[0](out.transpose(1, 2).flatten(2).to(x.dtype))
        if self.to_out[1].p > 0:
            out = self.to_out[1](out)
        if hidden_states.dim() == 4:
            out = out.transpose(1, 2).view(hidden_states.shape)
        if self.residual_connection:
            out = residual + out  # in this order the sum keeps the memory format of the input
        return out if self.rescale_output_factor == 1 else out / self.rescale_output_factor

    def _seen(self, tokens: Tensor, context: Tensor | None, mask: Tensor | None) -> Seen:
        if self.kept is not None and context is not None and (found := self.kept(self, context, mask)) is not None:
            return found
        if context is not None and self.norm_cross is not None:
            context = self.norm_encoder_hidden_states(context)
        k, v = self.keys_values(tokens, context)
        return k, v, None if mask is None else self._broadcast_mask(mask, k.shape[2])

    def keys_values(self, tokens: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, heads, Lk, d) of a (normalised) context, or of the tokens where it is None."""
        if self.add_k_proj is None:
            source = tokens if context is None else context
            return self._split(self.to_k(source)), self._split(self.to_v(source))
        added = tokens if context is None else context
        k, v = self.add_k_proj(added), self.add_v_proj(added)
        if not self.only_cross_attention:
            k, v = torch.cat([k, self.to_k(tokens)], dim=1), torch.cat([v, self.to_v(tokens)], dim=1)
        return self._split(k), self._split(v)

    def _normalise(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return self.group_norm(x)
        return self.group_norm(x.transpose(1, 2)).transpose(1, 2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _backend(self, asked: str | None) -> str | None:
        asked = asked or self.backend
        if asked == "eager" and (self.upcast_attention or self.upcast_softmax):
            return "eager_fp32"
        return asked

    @staticmethod
    def _broadcast_mask(mask: Tensor, keys: int) -> Tensor:
        """Bring a mask to (B, 1, 1 or Lq, Lk); keys it does not speak of (the tokens' own) stay visible."""
        if mask.dim() == 2:
            mask = mask[:, None]
        if mask.dim() == 3:
            mask = mask[:, None]
        missing = keys - mask.shape[-1]
        if missing < 0:
            raise InputError(f"attention_mask covers {mask.shape[-1]} positions, but there are only {keys} keys")
        return F.pad(mask, (0, missing), value=1 if mask.dtype == torch.bool else 0.0) if missing else mask

    # -- what processors written against the documentation call -----------------------------------------------------

    def set_processor(self, processor: Any) -> None:
        """Install the callable that computes this attention.

        Raises:
            ConfigError: `processor` is not callable.
        """
        if not callable(processor):
            raise ConfigError(
                f"an attention processor must be callable as processor(attn, hidden_states, ...), got {processor!r}"
            )
        self._modules.pop("processor", None)
        self.__dict__.pop("processor", None)
        self.processor = processor
        self._accepts = accepted_keywords(processor)

    def get_processor(self) -> Any:
        """Return the callable that computes this attention."""
        return self.processor

    def set_attention_slice(self, slice_size: int | None) -> None:
        """Compute `slice_size` (image, head) pairs at a time; None computes all at once."""
        if slice_size is not None and not 1 <= slice_size <= self.sliceable_head_dim:
            raise InputError(f"slice_size is {slice_size}, must be between 1 and {self.sliceable_head_dim} (the heads)")
        self.slice_size = slice_size

    def head_to_batch_dim(self, tensor: Tensor, out_dim: int = 3) -> Tensor:
        """(B, L, heads * d) -> (B * heads, L, d), or (B, heads, L, d) with `out_dim=4`."""
        split = self._split(tensor if tensor.dim() == 3 else tensor.flatten(1, 2))
        return split.flatten(0, 1) if out_dim == 3 else split

    def batch_to_head_dim(self, tensor: Tensor) -> Tensor:
        """(B * heads, L, d) -> (B, L, heads * d)."""
        return tensor.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def get_attention_scores(self, query: Tensor, key: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the attention weights (B * heads, Lq, Lk) of queries and keys (B * heads, L, d)."""
        dtype = query.dtype
        if self.upcast_attention or self.upcast_softmax:
            query, key = query.float(), key.float()
        return attention_weights(query, key, attention_mask, self.scale).to(dtype)

    def prepare_attention_mask(
        self, attention_mask: Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
    ) -> Tensor | None:
        """Repeat an additive mask (B, 1, L) for every head: (B * heads, 1, L), or (B, heads, 1, L) with `out_dim=4`.

        A mask whose length is not `target_length` is followed by `target_length` visible positions.
        """
        if attention_mask is None:
            return None
        *rows, length = attention_mask.shape
        if length != target_length:
            attention_mask = torch.cat([attention_mask, attention_mask.new_zeros(*rows, target_length)], dim=-1)
        per_head = attention_mask.unsqueeze(1).repeat_interleave(self.heads, dim=1)
        if out_dim == 4:
            return per_head
        return per_head.flatten(0, 1) if rows[0] < batch_size * self.heads else attention_mask

    def norm_encoder_hidden_states(self, encoder_hidden_states: Tensor) -> Tensor:
        """Apply `norm_cross` to a context (B, L, C)."""
        if self.norm_cross is None:
            raise ConfigError("this attention has no norm_cross: it was built with cross_attention_norm=None")
        if isinstance(self.norm_cross, nn.GroupNorm):
            return self.norm_cross(encoder_hidden_states.transpose(1, 2)).transpose(1, 2)
        return self.norm_cross(encoder_hidden_states)


def default_processor(attn: Attention) -> Any:
    """Return the processor a new attention starts with."""
    from .processors import AttnAddedKVProcessor2_0, AttnProcessor2_0

    return AttnProcessor2_0() if attn.add_k_proj is None else AttnAddedKVProcessor2_0()


def accepted_keywords(processor: Any) -> frozenset[str] | None:
    """Return the keywords that a processor's call accepts beyond the documented ones; None means any."""
    call = processor.forward if isinstance(processor, nn.Module) else processor
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
