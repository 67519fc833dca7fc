"""The documented attention processor names: thin objects that choose how `Attention.compute` runs.

A processor is any callable of the form
`processor(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None)`.
Those here hold no weights and no state of a run, so one object may serve every layer of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, InputError, did_you_mean
from ..core.logging import get_logger
from .attention import Attention, default_processor
from .backends import attend, resolve_backend

logger = get_logger(__name__)


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


def report_attention_op(attention_op: object) -> None:
    """Say that a kernel of xformers chosen by the caller is not used."""
    if attention_op is not None:
        logger.warning("attention_op=%r is not used: xformers picks the kernel for each input", attention_op)


class XFormersAttnProcessor(Processor):
    """Memory-efficient attention of the xformers package, which picks its kernel itself."""

    backend = "xformers"

    def __init__(self, attention_op: object = None) -> None:
        from ..core.imports import require

        require("xformers", why="XFormersAttnProcessor")
        report_attention_op(attention_op)


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


class CustomDiffusionAttnProcessor(nn.Module):
    """Trainable projections in place of the attention's own (custom diffusion, Kumari et al. 2023).

    `train_kv` owns keys and values, `train_q_out` also queries and output. In cross-attention the keys and values of
    the first token receive no gradient, so that it keeps its meaning.

    Args:
        hidden_size: width of the attention.
        cross_attention_dim: width of the context; None for self-attention.
    """

    def __init__(
        self,
        train_kv: bool = True,
        train_q_out: bool = True,
        hidden_size: int | None = None,
        cross_attention_dim: int | None = None,
        out_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_size is None and (train_kv or train_q_out):
            raise ConfigError("CustomDiffusionAttnProcessor needs hidden_size, the width of its attention")
        self.train_kv, self.train_q_out = train_kv, train_q_out
        self.hidden_size, self.cross_attention_dim = hidden_size, cross_attention_dim
        owned: dict[str, int | None] = {}
        if train_kv:
            owned |= dict.fromkeys(("k", "v"), cross_attention_dim or hidden_size)
        if train_q_out:
            owned["q"] = hidden_size
            last = nn.Linear(hidden_size, hidden_size, bias=out_bias)
            self.to_out_custom_diffusion = nn.ModuleList([last, nn.Dropout(dropout)])
        for letter, width in owned.items():
            self.add_module(f"to_{letter}_custom_diffusion", nn.Linear(width, hidden_size, bias=False))

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the attention's output, same shape as `hidden_states` (B, L, C)."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross is not None:
            source = attn.norm_encoder_hidden_states(source)
        to_q = self.to_q_custom_diffusion if self.train_q_out else attn.to_q
        to_k = self.to_k_custom_diffusion if self.train_kv else attn.to_k
        to_v = self.to_v_custom_diffusion if self.train_kv else attn.to_v
        q, k, v = to_q(hidden_states), to_k(source), to_v(source)
        if encoder_hidden_states is not None:
            k, v = (torch.cat([x[:, :1].detach(), x[:, 1:]], dim=1) for x in (k, v))
        q, k, v = (attn.head_to_batch_dim(x, out_dim=4) for x in (q, k, v))
        if attention_mask is not None and attention_mask.dim() == 3:
            attention_mask = attention_mask[:, None]
        out = attend(q, k, v, attention_mask, scale=attn.scale, backend=attn.backend, slice_size=attn.slice_size)
        to_out = self.to_out_custom_diffusion if self.train_q_out else attn.to_out
        return to_out[1](to_out[0](out.transpose(1, 2).flatten(2)))


class CustomDiffusionAttnProcessor2_0(CustomDiffusionAttnProcessor):
    """The documented name of the same processor for torch's fused attention; the backend decides."""


class CustomDiffusionXFormersAttnProcessor(CustomDiffusionAttnProcessor):
    """The documented name of the same processor for xformers; `set_attention_backend("xformers")` decides."""


def named_attentions(model: nn.Module) -> Iterator[tuple[str, Attention]]:
    """Yield the attentions inside a model with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Attention))


def get_processors(model: nn.Module) -> dict[str, Any]:
    """Return every attention's processor under the documented key, `"<attention's name>.processor"`."""
    return {f"{name}.processor": attn.processor for name, attn in named_attentions(model)}


def set_processors(model: nn.Module, processor: Any | Mapping[str, Any]) -> None:
    """Install one processor in every attention, or one per key of `get_processors`.

    Raises:
        ConfigError: a mapping misses a key or has one too many, or a processor is not callable.
    """
    attentions = {f"{name}.processor": attn for name, attn in named_attentions(model)}
    if not isinstance(processor, Mapping):
        processor = dict.fromkeys(attentions, processor)
    unknown = [key for key in processor if key not in attentions]
    if unknown:
        raise ConfigError(f"no attention {unknown[0]!r} in this model{did_you_mean(unknown[0], attentions)}")
    missing = [key for key in attentions if key not in processor]
    if missing:
        raise ConfigError(
            f"processors for {len(missing)} of {len(attentions)} attentions are missing, the first is {missing[0]!r}; "
            "start from dict(model.attn_processors)"
        )
    for key, attn in attentions.items():
        attn.set_processor(processor[key])


def set_vanilla_processors(model: nn.Module) -> None:
    """Install `AttnProcessor` (or `AttnAddedKVProcessor`) everywhere: plain tensor operations."""
    for _, attn in named_attentions(model):
        attn.set_processor(AttnProcessor() if attn.add_k_proj is None else AttnAddedKVProcessor())


def set_backend(model: nn.Module, backend: str | None) -> None:
    """Make a model's attentions use a backend; None returns to the library's default.

    Processors of this library that fix another backend make room; a user's own processors stay.

    Raises:
        ConfigError: the backend is unknown.
        MissingDependencyError: its package is not installed.
    """
    if backend is not None:
        backend = resolve_backend(backend)
    for _, attn in named_attentions(model):
        attn.backend = backend
        if isinstance(attn.processor, Processor) and attn.processor.backend is not None:
            attn.set_processor(default_processor(attn))


def set_slices(model: nn.Module, slice_size: str | int | list[int] | None = "auto") -> None:
    """Bound the memory of attention scores: compute `slice_size` (image, head) pairs at a time.

    "auto" takes half of each attention's heads, "max" one, a list has one number per attention, None turns it off.

    Raises:
        InputError: a number is larger than the heads of its attention, or the list has the wrong length.
    """
    attentions = [attn for _, attn in named_attentions(model)]
    if slice_size == "auto":
        sizes: list[int | None] = [max(attn.heads // 2, 1) for attn in attentions]
    elif slice_size == "max":
        sizes = [1] * len(attentions)
    elif isinstance(slice_size, (list, tuple)):
        sizes = list(slice_size)
    elif slice_size is None or isinstance(slice_size, int):
        sizes = [slice_size] * len(attentions)
    else:
        raise InputError(f"slice_size is {slice_size!r}; valid: 'auto', 'max', a number, a list of numbers or None")
    if len(sizes) != len(attentions):
        raise InputError(f"slice_size lists {len(sizes)} numbers, but the model has {len(attentions)} attentions")
    for attn, size in zip(attentions, sizes, strict=True):
        attn.set_attention_slice(size)
