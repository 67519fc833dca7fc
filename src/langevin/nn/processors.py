"""The documented attention processor names: thin objects that choose how `Attention.compute` runs.

A processor is any callable `processor(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None)`.
Those here hold no weights and no state of a run, so one object may serve every layer of a model.
"""

from __future__ import annotations

from torch import Tensor

from .attention import Attention


class Processor:
    """Computes an attention with a fixed backend; None leaves the choice to the module and the library."""

    backend: str | None = None
    slice_size: int | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the attention's output, same shape as `hidden_states`; `temb` is accepted and not used."""
        return attn.compute(
            hidden_states, encoder_hidden_states, attention_mask, backend=self.backend, slice_size=self.slice_size
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.slice_size is None else self.slice_size})"


class AttnProcessor(Processor):
    """Plain tensor operations: the vanilla computation, exportable to other formats."""

    backend = "eager"


class AttnProcessor2_0(Processor):
    """The backend of the model or of the library: torch's fused attention unless another was chosen."""


class XFormersAttnProcessor(Processor):
    """Memory-efficient attention of the xformers package; `attention_op` is accepted for its documented callers."""

    backend = "xformers"

    def __init__(self, attention_op: object = None) -> None:
        from ..core.imports import require

        require("xformers", extra=None, why="XFormersAttnProcessor")
        self.attention_op = attention_op


class SlicedAttnProcessor(Processor):
    """Plain tensor operations over `slice_size` (image, head) pairs at a time, to save memory."""

    backend = "eager"

    def __init__(self, slice_size: int) -> None:
        self.slice_size = slice_size


class AttnAddedKVProcessor(AttnProcessor):
    """`AttnProcessor` for attentions with `add_k_proj` and `add_v_proj`."""


class AttnAddedKVProcessor2_0(AttnProcessor2_0):
    """`AttnProcessor2_0` for attentions with `add_k_proj` and `add_v_proj`."""


class SlicedAttnAddedKVProcessor(SlicedAttnProcessor):
    """`SlicedAttnProcessor` for attentions with `add_k_proj` and `add_v_proj`."""


class XFormersAttnAddedKVProcessor(XFormersAttnProcessor):
    """`XFormersAttnProcessor` for attentions with `add_k_proj` and `add_v_proj`."""


__all__ = [
    "AttnAddedKVProcessor",
    "AttnAddedKVProcessor2_0",
    "AttnProcessor",
    "AttnProcessor2_0",
    "Processor",
    "SlicedAttnAddedKVProcessor",
    "SlicedAttnProcessor",
    "XFormersAttnAddedKVProcessor",
    "XFormersAttnProcessor",
]
