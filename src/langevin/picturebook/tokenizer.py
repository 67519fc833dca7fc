"""The picturebook's tokenizer: byte-pair encoding learned from the caption grammar, written in CLIP's file format.

Byte-pair encoding is due to Sennrich et al. (2016, arXiv 1508.07909); starting from the 256 bytes lets it encode any
text. Every word of the grammar becomes one token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.files import atomic_write
from ..weights.bundled import END, WORD_END, tokenizer_files
from .captions import vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LENGTH = 32
"""Tokens of a prompt, the start and end included; the longest caption has 21 words and marks."""

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return the merges that make one token of every word: again and again the most frequent pair of neighbours.

    Ties go to the pair that comes first in the alphabet, so the result depends on the words alone.
    """
    spelt = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words))]
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
    merges = [" ".join(pair) for pair in learn_merges(vocabulary())]
    for name, text in tokenizer_files(merges, length=LENGTH, pad=END).items():
        atomic_write(folder / name, text)


def load(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer in `folder`, writing it first if it is not there."""
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").exists():
        write(folder)
    return CLIPTokenizer.from_pretrained(folder)


def encode(words: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Return the tokens of texts, int64 of shape (texts, 32)."""
    return words(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
