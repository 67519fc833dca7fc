"""The documented import path of the attention processors; they live in `langevin.nn.processors`."""

from __future__ import annotations

from ..nn.attention import Attention
from ..nn.ip_processors import (
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
)
from ..nn.processors import (
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor,
    CustomDiffusionAttnProcessor2_0,
    CustomDiffusionXFormersAttnProcessor,
    SlicedAttnAddedKVProcessor,
    SlicedAttnProcessor,
    XFormersAttnAddedKVProcessor,
    XFormersAttnProcessor,
)

__all__ = [
    "Attention",
    "AttnAddedKVProcessor",
    "AttnAddedKVProcessor2_0",
    "AttnProcessor",
    "AttnProcessor2_0",
    "CustomDiffusionAttnProcessor",
    "CustomDiffusionAttnProcessor2_0",
    "CustomDiffusionXFormersAttnProcessor",
    "IPAdapterAttnProcessor",
    "IPAdapterAttnProcessor2_0",
    "IPAdapterXFormersAttnProcessor",
    "SlicedAttnAddedKVProcessor",
    "SlicedAttnProcessor",
    "XFormersAttnAddedKVProcessor",
    "XFormersAttnProcessor",
]
