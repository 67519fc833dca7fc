"""Reference attention: self-attention that also looks at a reference picture, noised as much as the sample.

The network reads the reference at each step; what its self-attentions see there is kept, and put beside the tokens of
the sample. No weights are added. Source: "reference-only" control of sd-webui-controlnet (Zhang 2023).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..diffusion.guidance import Branches
from ..diffusion.process import noised
from ..diffusion.table import Step
from ..nn.attention import Attention
from ..nn.processors import named_attentions
from .common import dtype_of
from .denoiser import ModelCall


@dataclass
class Memory:
    """What the self-attentions saw of the reference at one step.

    Attributes:
        strength: how much a token of the reference counts beside one of the sample, above 0.
        tokens: by attention, (1, tokens, width).
        writing: the network is reading the reference now.
    """

    strength: float
    tokens: dict[Attention, Tensor] = field(default_factory=dict)
    writing: bool = False

    def beside(self, attention: Attention, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what is to be attended to, None for the tokens alone, and an additive mask over it or None."""
        if self.writing:
            self.tokens[attention] = tokens
            return None, None
        seen = self.tokens[attention].expand(len(tokens), -1, -1)
        mask = None
        if self.strength != 1:
            mask = torch.zeros(1, tokens.shape[1] + seen.shape[1], dtype=tokens.dtype, device=tokens.device)
            mask[:, tokens.shape[1] :] = math.log(self.strength)
        return torch.cat([tokens, seen], dim=1), mask


class Referring:
    """A processor that does what another one does, and with the keyword `reference` looks at a memory too."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: Memory | None = None,
    ) -> Tensor:
        """Return the attention's output, same shape as `hidden_states`."""
        if reference is not None and encoder_hidden_states is None:
            encoder_hidden_states, attention_mask = reference.beside(attn, hidden_states)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def referring(network: nn.Module) -> Iterator[None]:
    """Let the self-attentions of a network know the keyword `reference` meanwhile; other calls of it do not change."""
    with _lock:
        _users[network] = _users.get(network, 0) + 1
        if _users[network] == 1:
            for _, attention in named_attentions(network):
                if not attention.is_cross_attention and attention.add_k_proj is None:
                    attention.set_processor(Referring(attention.processor))
    try:
        yield
    finally:
        with _lock:
            _users[network] -= 1
            if not _users[network]:
                for _, attention in named_attentions(network):
                    if isinstance(attention.processor, Referring):
                        attention.set_processor(attention.processor.inner)


@dataclass
class Reference:
    """An attachment: the network reads the reference, noised to the level of the step, and remembers it for the call.

    Attributes:
        network: inside `referring`.
        latents, noise: of the reference, (1, channels, height, width).
        strength: see `Memory`.
    """

    network: Any
    latents: Tensor
    noise: Tensor
    strength: float = 1.0

    def __call__(self, call: ModelCall, step: Step, branches: Branches) -> None:
        """Read the reference under the conditioning of the last row, a positive one, and hand over the memory."""
        memory = Memory(self.strength, writing=True)
        sample = noised(self.latents, self.noise, step.level) * step.in_scale
        kept = call.options.get("timestep_cond")
        options = {} if kept is None else {"timestep_cond": kept[-1:]}
        self.network(
            sample.to(dtype_of(self.network, sample.dtype)),
            call.timestep,
            **call.cond.rows(slice(-1, None)).keywords(),
            **options,
            cross_attention_kwargs={"reference": memory},
        )
        given = call.options.get("cross_attention_kwargs") or {}
        call.options["cross_attention_kwargs"] = {**given, "reference": replace(memory, writing=False)}
