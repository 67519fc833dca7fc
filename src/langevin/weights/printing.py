"""An inspection in words: a headline, a table of facts, the components, and what is wrong."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core.report import counted, some
from .contents import amount
from .found import FAMILIES

if TYPE_CHECKING:
    from .inspection import Inspection

LABEL, WIDTH = 20, 110
TITLES = {
    "lora": "LoRA",
    "unet": "UNet",
    "vae": "VAE",
    "controlnet": "ControlNet",
    "t2i-adapter": "T2I-Adapter",
    "ip-adapter": "IP-Adapter",
}
"""Kind -> how it is written, where it is written otherwise."""
METADATA = {
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.date": "date",
    "modelspec.license": "license",
    "modelspec.architecture": "architecture",
    "modelspec.trigger_phrase": "trigger words",
    "modelspec.resolution": "trained at",
    "modelspec.prediction_type": "predicts",
    "ss_output_name": "name",
    "ss_sd_model_name": "trained on",
    "ss_base_model_version": "base model",
    "ss_network_module": "network",
    "ss_network_args": "options",
    "ss_resolution": "trained at",
    "ss_num_train_images": "pictures",
    "ss_steps": "steps",
    "ss_clip_skip": "clip skip",
    "global_step": "steps",
    "epoch": "epochs",
    "sd_checkpoint_name": "trained on",
    "step": "steps",
}
"""Metadata that are printed, by what they are called in print."""
TAGS, SHOWN = "ss_tag_frequency", 8
SPELT = ("checkpoint", "lora", "unet", "vae", "controlnet", "t2i-adapter", "text encoder", "image encoder")
"""Kinds of which the way that names are spelt is worth a word."""


def print_out(found: Inspection) -> str:
    """Return an inspection as text of several lines."""
    rows = [*_facts(found), *_metadata(found)]
    lines = [found.path, f"  {headline(found)}", *([""] if rows else [])]
    lines += [line for label, value in rows for line in _row(label, value)]
    width = max(map(len, found.parts), default=0) + 2
    sections = {
        "components": [f"{name:<{width}}{_line(part)}" for name, part in found.parts.items()],
        "why": found.reasons,
        "not settled": found.doubts,
        "wrong": [*found.damage, *(f"{k}: {line}" for k, part in found.parts.items() for line in part.damage)],
    }
    for title, items in sections.items():
        lines += _section(title, items)
    if found.fit is not None:
        lines += ["", *textwrap.indent(str(found.fit), "  ").splitlines()]
    return "\n".join(lines).rstrip()


def headline(found: Inspection) -> str:
    """Return what the thing is, in a phrase."""
    kind = TITLES.get(found.kind, found.kind)
    kind = f"{kind[0].upper()}{kind[1:]}"
    algorithms = found.details.get("algorithms")
    if found.kind == "lora" and algorithms:
        kind = " and ".join(algorithms)
    family = FAMILIES.get(found.family or "", found.family)
    task = found.details.get("task")
    of = "of" if found.kind in ("checkpoint", "unet", "pipeline folder") else "for"
    parts = [kind, f" {of} {family}" if family else "", f" ({task})" if task and task not in (family or "") else ""]
    parts += [f", {found.dialect} names" if found.dialect and found.kind in SPELT else ""]
    return "".join(parts)


def _facts(found: Inspection) -> Iterator[tuple[str, Any]]:
    if found.parameters:
        types = some(
            [name if len(found.dtypes) == 1 else f"{amount(n).strip()} {name}" for name, n in found.dtypes.items()]
        )
        yield (
            "parameters",
            f"{amount(found.parameters).strip()} in {counted(range(found.tensors), 'tensor', 'tensors')} ({types})",
        )
    if found.size:
        yield "size", f"{amount(found.size)}B" + (f", {found.format}" if found.format else "")
    head = headline(found)
    for name, value in found.details.items():
        if name in ("algorithms", "task") and all(word in head for word in ([value] if name == "task" else value)):
            continue
        if isinstance(value, Mapping):
            yield name, [f"{part} {amount(n).strip()}" for part, n in value.items()]
        elif name == "resolution":
            yield name, f"{value} pixels"
        else:
            yield name, "yes" if value is True else value


def _metadata(found: Inspection) -> Iterator[tuple[str, Any]]:
    for key, label in METADATA.items():
        value = found.metadata.get(key, "")
        if value and value != "None" and label not in found.details:
            yield label, value
    if tags := top_tags(found.metadata):
        yield "captions", tags
    known = {*METADATA, "format", TAGS}
    others = [key for key in found.metadata if key not in known]
    if others:
        yield (
            "other metadata",
            f"{counted(others, 'entry', 'entries')} ({some(others[:6])}{' ...' if len(others) > 6 else ''})",
        )


def _row(label: str, value: Any) -> list[str]:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = " ".join(text.split())
    if len(text) > 400:
        text = f"{text[:400]} ..."
    wrapped = textwrap.wrap(text, WIDTH - LABEL) or [""]
    return [f"  {label:<{LABEL}}{wrapped[0]}", *(f"  {'':<{LABEL}}{line}" for line in wrapped[1:])]


def _line(part: Inspection) -> str:
    """Return a component in one line."""
    facts = [f"{amount(part.parameters).strip()} {', '.join(part.dtypes)}" if part.parameters else ""]
    variants = part.details.get("variants", ())
    facts += [f"variants: {', '.join(v.split(' ')[0] for v in variants)}"] if len(variants) > 1 else []
    facts += [f"{part.details['shards']} shards"] if "shards" in part.details else []
    facts += ["damaged"] if part.damage else []
    told = ", ".join(filter(None, facts))
    return f"{part.details.get('class') or headline(part)}{f' ({told})' if told else ''}"


def _section(title: str, items: Iterable[str]) -> list[str]:
    lines = [
        line
        for item in items
        for line in textwrap.wrap(
            item,
            WIDTH,
            initial_indent="    ",
            subsequent_indent="      ",
            replace_whitespace=False,
            drop_whitespace=True,
        )
    ]
    return ["", f"  {title}", *lines] if lines else []


def top_tags(metadata: Mapping[str, str]) -> list[str]:
    """Return the most frequent words of the captions that an adapter was trained on, as its metadata counts them."""
    total: Counter[str] = Counter()
    try:
        for counts in json.loads(metadata.get(TAGS, "{}")).values():
            total.update({str(tag).strip(): int(n) for tag, n in counts.items()})
    except (ValueError, AttributeError, TypeError):
        return []
    return [f"{tag} ({n})" for tag, n in total.most_common(SHOWN)]
