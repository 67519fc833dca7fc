"""What comes with the library so that a single file needs nothing else: configurations, and the tokenizer of CLIP.

presets.json holds only what shapes cannot tell: schedulers, scales of latents, and options without weights.
clip_merges.txt.gz is the vocabulary of CLIP (Radford et al. 2021), see LICENSE-clip.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...core.imports import require

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 77
"""Tokens of a prompt, the start and end included."""


@cache
def _contents() -> dict[str, Any]:
    return json.loads(files(__package__).joinpath("presets.json").read_text(encoding="utf-8"))


def preset(name: str) -> dict[str, Any]:
    """Return what is known of a kind of checkpoint: component -> options, or the name of a scheduler's options."""
    own = dict(_contents()["presets"][name])
    inherited = own.pop("base", None)
    below = preset(inherited) if inherited else {}
    return {**below, **{k: {**below.get(k, {}), **v} if isinstance(v, dict) else v for k, v in own.items()}}


def scheduler_options(name: str) -> dict[str, Any]:
    """Return the configuration of a scheduler of the presets, its class as `_class_name`."""
    return dict(_contents()["schedulers"][name])


def byte_characters() -> list[str]:
    """Return 256 printable characters in the order of CLIP's vocabulary: bytes that print stand for themselves."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printing] + [chr(256 + k) for k in range(256 - len(printing))]


def tokenizer_files(merges: Iterable[str], *, length: int, pad: str) -> dict[str, str]:
    """Return name -> text of the files of a CLIP tokenizer.

    Args:
        merges: pairs of symbols, each pair joined by a space.
        length: tokens of a prompt.
        pad: token that fills a prompt up.
    """
    merges, characters = list(merges), byte_characters()
    tokens = [*characters, *(c + WORD_END for c in characters), *(pair.replace(" ", "") for pair in merges), START, END]
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        **special,
    }
    ids = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return {
        "vocab.json": json.dumps(ids, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2, sort_keys=True) + "\n",
    }


def clip_tokenizer(pad_token: str = END) -> Any:
    """Return the tokenizer of CLIP with its 49408 words, made from the merges that come with the library.

    Args:
        pad_token: what fills prompts up: the end for CLIP ViT-L, "!" for OpenCLIP.
    """
    transformers = require("transformers", why="The tokenizer of CLIP")
    packed = files(__package__).joinpath("clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").splitlines()[1:]
    with TemporaryDirectory() as folder:
        for name, text in tokenizer_files(merges, length=LENGTH, pad=pad_token).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer.name_or_path = ""
    return tokenizer
