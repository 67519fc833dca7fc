"""The words of adapter dialects: what stands before a layer's name, and what stands behind it.

A dialect is data. Reading knows all of them at once, since files mix them; writing uses one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

ALPHA, ANY = "alpha", "any"
"""The part that holds a layer's alpha, and the algorithm of parts that belong to several."""


class Part(NamedTuple):
    """What a tensor is: its algorithm (a key of `parts.ALGORITHMS`, or ANY), and its name there.

    `leaf` is the last step of the layer's path where the ending holds it ("to_q" in "to_q_lora.down.weight").
    """

    algorithm: str
    part: str
    leaf: str = ""


@dataclass(frozen=True)
class Dialect:
    """How a family of files spells the tensors of an adapter.

    Attributes:
        name: what the dialect is called.
        prefixes: component -> what stands before its layers; the first is the one that is written.
        ends: what stands behind a layer's name -> what the tensor is. "*" stands for any one word.
        written: algorithm -> part -> the end that is written; what is not here cannot be written.
        written_text: the same for text encoders, where it differs.
        norms: part -> the end that is written for the difference of a norm, where it differs.
        leaves: projections of an attention, whose names stand in the end; a dialect with these writes nothing else.
        flat: the dots of a layer's name are written as underscores.
        alpha: the end of a layer's alpha; None where it goes into the metadata.
    """

    name: str
    prefixes: Mapping[str, tuple[str, ...]]
    ends: Mapping[str, Part]
    written: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    written_text: Mapping[str, Mapping[str, str]] | None = None
    norms: Mapping[str, str] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    flat: bool = False
    alpha: str | None = None

    def ends_for(self, component: str, algorithm: str) -> Mapping[str, str]:
        """Return part -> the end that is written for an algorithm in a component."""
        text = self.written_text if component.startswith("text_encoder") else None
        return (text or self.written).get(algorithm, {})


ALGORITHM_NAMES = {
    "lora": "LoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "oft": "OFT",
    "full": "full difference",
}

REFUSED: Mapping[str, str] = {
    "ia3_l": "IA3",
    "ia3_l.*": "IA3",
    "on_input": "IA3 of LyCORIS",
    "a1.weight": "GLoRA",
    "a2.weight": "GLoRA",
    "b1.weight": "GLoRA",
    "b2.weight": "GLoRA",
    "bm.weight": "GLoRA",
    "boft_R": "BOFT",
    "boft_R.*": "BOFT",
    "boft_s": "BOFT",
    "boft_s.*": "BOFT",
    "oft_r": "OFT in PEFT's parametrisation",
    "oft_r.*": "OFT in PEFT's parametrisation",
    "oft_R.weight": "OFT in PEFT's parametrisation",
    "oft_R.*.weight": "OFT in PEFT's parametrisation",
    "vera_lambda_b": "VeRA",
    "vera_lambda_d": "VeRA",
    "lora_embedding_A": "LoRA of embeddings",
    "lora_embedding_B": "LoRA of embeddings",
    "lora_E": "AdaLoRA",
    "lora_E.*": "AdaLoRA",
    "bias_indices": "LyCORIS with sparse biases",
    "bias_values": "LyCORIS with sparse biases",
    "bias_size": "LyCORIS with sparse biases",
    "scalar": "LyCORIS with a trained scalar",
    "q_lora_down.weight": "cloneofsimo's projection LoRA",
}
"""What stands behind a layer's name in files of algorithms that are not supported -> the algorithm."""

BUNDLES = ("bundle_emb.",)
"""Prefixes of textual inversions that travel in the same file."""


def match(name: str, ends: Container[str]) -> tuple[str, str, str] | None:
    """Split a tensor's name into the layer's name and the longest end that is known, and give that as `ends` has it."""
    words = name.split(".")
    for count in range(min(4, len(words) - 1), 0, -1):
        tail = words[-count:]
        for end in (".".join(tail), *_wildcards(tail)):
            if end in ends:
                return ".".join(words[:-count]), ".".join(tail), end
    return None


def _wildcards(tail: list[str]) -> list[str]:
    """Return a tail of a name with its second word as "*"."""
    return [".".join([tail[0], "*", *tail[2:]])] if len(tail) > 1 else []
