"""The picturebook's tokenizer: byte-pair encoding learned from the caption grammar, written in CLIP's file format.

Byte-pair encoding is due to Sennrich et al. (2016, arXiv 1508.07909); starting from the 256 bytes lets it encode any
text. Every word of the grammar becomes one token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import atomic_write
from .captions import vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LENGTH = 32
"""Tokens of a prompt, the start and end included; the longest caption has 21 words and marks."""

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def byte_characters() -> list[str]:
    """Return 256 printable characters in the order of CLIP's vocabulary: bytes that print stand for themselves."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printing] + [chr(256 + k) for k in range(256 - len(printing))]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return the merges that make one token of every word: again and again the most frequent pair of neighbours.

    Ties go to the pair that comes first in the alphabet, so the result depends on the words alone.
    """
    spelt = [[*word[:-1], word[-1] + _WORD_END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for symbols in spelt for pair in pairwise(symbols))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [_merge(symbols, best) for symbols in spelt]


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of `pair`, from left to right."""
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def write(folder: Path) -> None:
    """Write the tokenizer's `FILES`."""
    merges = learn_merges(vocabulary())
    characters = byte_characters()
    tokens = [*characters, *(c + _WORD_END for c in characters), *("".join(pair) for pair in merges), START, END]
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        **special,
    }
    ids = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    atomic_write(folder / "vocab.json", json.dumps(ids, ensure_ascii=False))
    atomic_write(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    atomic_write(folder / "tokenizer_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    atomic_write(folder / "special_tokens_map.json", json.dumps(special, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer in `folder`, writing it first if it is not there."""
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").exists():
        write(folder)
    return CLIPTokenizer.from_pretrained(folder)
