"""Weights that KerasCV trained (.h5), in the place of those of a Stable Diffusion 1 pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.errors import InputError, WeightsError
from ..core.hub import hub_options
from ..weights.layouts.keras import shape_of
from ..weights.single_file import SingleFile
from ..weights.wishes import locate, wishes_of
from . import files
from .base import DiffusionPipeline


def from_keras(
    base: str | os.PathLike,
    *,
    unet: str | os.PathLike | None = None,
    text_encoder: str | os.PathLike | None = None,
    placeholder_token: str | Sequence[str] = (),
    **options: Any,
) -> Any:
    """Return the pipeline of a folder or hub repository with weights that KerasCV trained in it.

    Args:
        base: a pipeline of Stable Diffusion 1, which brings all that the files do not.
        unet: .h5 file of KerasCV's DiffusionModel.
        text_encoder: .h5 file of KerasCV's TextEncoder. Of a textual inversion (Gal et al. 2022, 2208.01618) it has
            one row more for each learned word.
        placeholder_token: the learned words, in the order of their rows. They are loaded as by
            `load_textual_inversion`.
        options: of `from_pretrained`; those of the hub also hold for the files.
    Raises:
        InputError: without a file, or for other words than there are further rows.
        WeightsError: for a file that is damaged, of another layout, or made for another network than the base's.
    """
    words = [placeholder_token] if isinstance(placeholder_token, str) else list(placeholder_token)
    if unet is None and text_encoder is None:
        raise InputError("from_keras needs a file of KerasCV: pass `unet`, `text_encoder`, or both")
    if words and text_encoder is None:
        raise InputError("`placeholder_token` names words that a text encoder learned; pass `text_encoder`")
    hub = hub_options(options)
    choices = files.Choices(files.dtypes(options.get("torch_dtype"), options.get("dtype")))
    given = {"unet": unet, "text_encoder": text_encoder}
    networks = {name: _network(file, name, base, choices, hub) for name, file in given.items() if file is not None}
    pipe = DiffusionPipeline.from_pretrained(base, **networks, **options)
    if "text_encoder" in networks:
        _learn(pipe, os.fspath(text_encoder), words)
    return pipe


def component_of(file: str | os.PathLike) -> str:
    """Return which component a file of KerasCV holds, "unet" or "text_encoder".

    Raises:
        WeightsError: when it is no such file.
    """
    with SingleFile(locate(file)) as opened:
        return _component(opened)


def _component(file: SingleFile) -> str:
    if not file.family.name.startswith("keras_"):
        raise WeightsError(f"{file.what} is no file of KerasCV. It is {file.facts.explain()}")
    return next(iter(file.places))


def _network(
    link_or_path: str | os.PathLike,
    component: str,
    base: str | os.PathLike,
    choices: files.Choices,
    hub: Mapping[str, Any],
) -> nn.Module:
    """Return a network of a file with the configuration of the base's."""
    path = locate(link_or_path, **{name: value for name, value in hub.items() if name != "revision"})
    dtype = choices.dtype(component)
    with SingleFile(path, wishes_of(config=base, original_config=None, hub=hub)) as file:
        if _component(file) != component:
            raise WeightsError(f"{path} holds the {_component(file)}; pass it as `{_component(file)}`")
        rows = shape_of(file.header, "clip_embedding", 0, "token_embedding") if component == "text_encoder" else ()
        changes = {"vocab_size": rows[0]} if rows else {}
        return file.build(component, dtype=dtype if isinstance(dtype, torch.dtype) else None, overrides=changes)


def _learn(pipe: Any, what: str, words: Sequence[str]) -> None:
    """Turn the rows of a text encoder behind those of the vocabulary into learned words."""
    rows = pipe.text_encoder.get_input_embeddings().weight.detach()
    known = len(pipe.tokenizer)
    further = len(rows) - known
    if further < 0:
        raise WeightsError(f"{what} has {len(rows)} rows of words, and the tokenizer of the base knows {known}")
    if further != len(words):
        raise InputError(
            f"{what} has {further} rows of words behind the {known} of the vocabulary, and `placeholder_token` names "
            f"{len(words)} ({', '.join(words) or 'none'}); name one for each, in the order in which they were added"
        )
    if words:
        learned = [row.clone() for row in rows[known:]]
        pipe.text_encoder.resize_token_embeddings(known)
        pipe.load_textual_inversion(learned, token=list(words))
