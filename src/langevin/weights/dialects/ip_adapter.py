"""Files of IP-Adapters (Ye et al. 2023, 2308.06721): what their names mean, which kind they are, how wide.

A file has two parts. `image_proj` turns embeddings of pictures into tokens; its names tell the kind. `ip_adapter` holds
the keys and values of every cross-attention for these tokens, `N.to_k_ip.weight`, where attentions are counted through
the way down, the way up and the middle, self-attentions included, so that N is odd. FaceID files also hold LoRA layers
of all attentions, `N.to_q_lora.down.weight`. The parts are dictionaries in a .bin file and prefixes in a flat one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...core.errors import WeightsError
from ...core.report import some
from ...core.weights_io import Entry
from ...nn.embedding import ImageProjection
from ...nn.image_projection import (
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)
from ..checkpoint import open_weights, read_tensors
from ..found import CONTEXTS, Found
from ..ops import Split
from ..rules import Rule, Rules, below, renamed, rule
from .parts import Adapter, Parts

Shapes = Mapping[str, tuple[int, ...]]
PROJECTION, ATTENTION = "image_proj", "ip_adapter"
"""The two parts of a file."""
KEYS = re.compile(r"(\d+)\.(to_[kv])_ip\.weight")
LORA = re.compile(r"(\d+)\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")
HEAD = 64
"""Width of a head of every resampler."""
LAYERS = (
    *renamed({
        "layers.{}.0.norm1": "layers.{}.ln0",
        "layers.{}.0.norm2": "layers.{}.ln1",
        "layers.{}.0.to_q": "layers.{}.attn.to_q",
        "layers.{}.0.to_out": "layers.{}.attn.to_out.0",
        "layers.{}.1.0": "layers.{}.ff.0",
        "layers.{}.1.1": "layers.{}.ff.1.net.0.proj",
        "layers.{}.1.3": "layers.{}.ff.1.net.2",
    }),
    rule("layers.{}.0.to_kv.weight", ("layers.{}.attn.to_k.weight", "layers.{}.attn.to_v.weight"), Split(2)),
    *renamed({name: name for name in ("proj_in", "proj_out", "norm_out")}),
)  # fmt: skip
"""Names of a resampler's parameters in files and in the module."""
NETWORK = renamed({"proj.0": "ff.net.0.proj", "proj.2": "ff.net.2"})


@dataclass(frozen=True)
class Kind:
    """One kind of adapter.

    Attributes:
        name: what it is called.
        mark: names, of which a file of this kind has all; the first kind that fits counts.
        rules: names in the file -> names of the module.
        build: makes the module from the shapes under its own names, without values on the meta device.
        given: the layer that the embeddings of a call enter.
        seen: the layer that what the picture encoder gives enters, None where pictures are not looked at.
        hidden: it reads the states before the picture encoder's last layer; else its embedding.
        face: it reads embeddings of faces, which the caller brings.
        tokens: how many tokens a picture becomes, from the shapes under the module's names; None for all of them.
    """

    name: str
    mark: tuple[str, ...]
    rules: Rules
    build: Callable[[Shapes], nn.Module]
    given: str
    seen: str | None
    hidden: bool = False
    face: bool = False
    tokens: Callable[[Shapes], int | None] = field(default=lambda shapes: None)


def plain(shapes: Shapes) -> nn.Module:
    """Build the projection of one embedding."""
    total, given = shapes["image_embeds.weight"]
    width = shapes["norm.weight"][0]
    return ImageProjection(given, width, total // width)


def full(shapes: Shapes) -> nn.Module:
    """Build the projection of every token."""
    width, given = shapes["ff.net.2.weight"]
    return IPAdapterFullImageProjection(given, width)


def face(shapes: Shapes) -> nn.Module:
    """Build the projection of a face."""
    inner, given = shapes["ff.net.0.proj.weight"]
    width = shapes["norm.weight"][0]
    return IPAdapterFaceIDImageProjection(given, width, inner // given, shapes["ff.net.2.weight"][0] // width)


def resampler(shapes: Shapes) -> dict[str, Any]:
    """Return the options that all resamplers share."""
    inner, width = shapes["layers.0.attn.to_q.weight"]
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    ratio = shapes["layers.0.ff.1.net.0.proj.weight"][0] / width
    return {"depth": len(layers), "dim_head": HEAD, "heads": inner // HEAD, "ffn_ratio": ratio}


def plus(shapes: Shapes) -> nn.Module:
    """Build a resampler."""
    hidden, given = shapes["proj_in.weight"]
    options = {**resampler(shapes), "num_queries": shapes["latents"][1]}
    return IPAdapterPlusImageProjection(given, shapes["proj_out.weight"][0], hidden, **options)


def face_plus(shapes: Shapes) -> nn.Module:
    """Build the projection of a face that looks at the picture."""
    width, seen = shapes["proj_in.weight"]
    inner, given = shapes["proj.net.0.proj.weight"]
    options = {**resampler(shapes), "num_tokens": shapes["proj.net.2.weight"][0] // width}
    options["ffproj_ratio"] = inner // given
    return IPAdapterFaceIDPlusImageProjection(width, shapes["proj_out.weight"][0], seen, given, **options)


def quotient(name: str, part: str) -> Callable[[Shapes], int]:
    """Return the function that says how often the width of `part` goes into the output of `name`."""
    return lambda shapes: shapes[name][0] // shapes[part][0]


def rules(*parts: Iterable[Rule]) -> Rules:
    """Join lists of rules."""
    return Rules(one for part in parts for one in part)


NORM = renamed({"norm": "norm"})
KINDS = (
    Kind(
        "faceid-plus",
        ("perceiver_resampler.proj_in.weight", "proj.0.weight"),
        rules(
            below("perceiver_resampler", "", LAYERS),
            renamed({"proj.0": "proj.net.0.proj", "proj.2": "proj.net.2"}),
            NORM,
        ),
        face_plus,
        "proj.net.0.proj",
        "proj_in",
        hidden=True,
        face=True,
        tokens=quotient("proj.net.2.weight", "norm.weight"),
    ),
    Kind(
        "plus",
        ("latents", "proj_in.weight"),
        rules(LAYERS, renamed({"latents": "latents"})),
        plus,
        "proj_in",
        "proj_in",
        hidden=True,
        tokens=lambda shapes: shapes["latents"][1],
    ),
    Kind(
        "full-face",
        ("proj.3.weight",),
        rules(NETWORK, renamed({"proj.3": "norm"})),
        full,
        "ff.net.0.proj",
        "ff.net.0.proj",
        hidden=True,
    ),
    Kind(
        "faceid",
        ("proj.0.weight", "norm.weight"),
        rules(NETWORK, NORM),
        face,
        "ff.net.0.proj",
        None,
        face=True,
        tokens=quotient("ff.net.2.weight", "norm.weight"),
    ),
    Kind(
        "base",
        ("proj.weight", "norm.weight"),
        rules(renamed({"proj": "image_embeds"}), NORM),
        plain,
        "image_embeds",
        "image_embeds",
        tokens=quotient("image_embeds.weight", "norm.weight"),
    ),
)
"""The kinds of adapters, told by what their projection is made of."""


@dataclass(frozen=True)
class IPAdapter:
    """An adapter that was read.

    Attributes:
        kind: what it is.
        projection: the tensors of its projection, by the module's names.
        attention: number of the attention in the file's order -> "to_k" and "to_v" -> weight.
        lora: LoRA layers of the attentions: number of the attention -> name of the layer -> parts.
        what: how the adapter is called in messages.
    """

    kind: Kind
    projection: Mapping[str, Tensor]
    attention: Mapping[int, Mapping[str, Tensor]]
    lora: Mapping[int, Mapping[str, Parts]]
    what: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the projection."""
        return {name: tuple(tensor.shape) for name, tensor in self.projection.items()}

    def width(self, layer: str) -> int:
        """Return how many numbers enter a layer of the projection."""
        return self.projection[f"{layer}.weight"].shape[-1]

    @property
    def tokens(self) -> int | None:
        """How many tokens a picture becomes, None where every token of the encoder becomes one."""
        return self.kind.tokens(self.shapes)

    def lora_of(self, layers: Mapping[int, str]) -> Adapter:
        """Return the LoRA layers of a network whose attentions have these names by their number in the file."""
        found = {
            f"{layers[number]}.{'to_out.0' if name == 'to_out' else name}": part
            for number, parts in self.lora.items()
            for name, part in parts.items()
        }
        return {"unet": found} if found else {}


def flat(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state dict with dotted names, whether its parts are dictionaries or prefixes."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        inside = value.items() if isinstance(value, Mapping) else [("", value)]
        found |= {f"{name}.{key}" if key else name: tensor for key, tensor in inside}
    return found


def read(path: str | os.PathLike) -> IPAdapter:
    """Read an adapter from a safetensors file or one that torch.save wrote.

    Raises:
        WeightsError: the file is damaged or is no IP-Adapter.
    """
    with open_weights(path) as file:
        return parse(read_tensors(file), os.fspath(path))


def part_of(names: Iterable[str], part: str) -> dict[str, str]:
    """Return name inside a part -> whole name."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def kind_of(names: Iterable[str]) -> Kind | None:
    """Return the kind whose projection has these names, or None."""
    here = set(names)
    return next((kind for kind in KINDS if here.issuperset(kind.mark)), None)


def parse(state: Mapping[str, Any], what: str = "The state dict") -> IPAdapter:
    """Read an adapter from a state dict, nested or flat.

    Raises:
        WeightsError: when it is no IP-Adapter, or has names that none has.
    """
    tensors = flat(state)
    projection, attention = (part_of(tensors, part) for part in (PROJECTION, ATTENTION))
    kind = kind_of(projection)
    if not attention or kind is None:
        raise WeightsError(f"{what} is no IP-Adapter: {reason(tensors, projection, attention)}")
    plan = kind.rules.plan(projection)
    keys: dict[int, dict[str, Tensor]] = {}
    lora: dict[int, dict[str, dict[str, str]]] = {}
    foreign = [f"{PROJECTION}.{name}" for name in [*plan.foreign, *(n for m in plan.partial for n in m.sources)]]
    foreign += [name for name in tensors if not name.startswith((f"{PROJECTION}.", f"{ATTENTION}."))]
    for name, stored in attention.items():
        if match := KEYS.fullmatch(name):
            keys.setdefault(int(match[1]), {})[match[2]] = tensors[stored]
        elif match := LORA.fullmatch(name):
            lora.setdefault(int(match[1]), {}).setdefault(match[2], {})[match[3]] = stored
        else:
            foreign.append(stored)
    halves = [f"{number}.{name}" for number, row in lora.items() for name, two in row.items() if len(two) < 2]
    halves += [str(number) for number, row in keys.items() if len(row) < 2]
    if foreign or halves:
        raise WeightsError(
            f"{what} is an IP-Adapter ({kind.name}) with names that none has, or halves: {some([*foreign, *halves])}."
        )
    made: dict[str, Tensor] = {}
    for move in plan.moves:
        made |= move.carry({name: tensors[projection[name]] for name in move.sources})
    parts = {
        number: {
            name: Parts("lora", {side: tensors[stored] for side, stored in two.items()}, None, tuple(two.values()))
            for name, two in row.items()
        }
        for number, row in lora.items()
    }
    return IPAdapter(kind, made, keys, parts, what)


def reason(tensors: Mapping[str, Any], projection: Mapping[str, Any], attention: Mapping[str, Any]) -> str:
    """Return why a state dict is no adapter."""
    if not tensors:
        return "it is empty"
    if not projection or not attention:
        lacking = [part for part, names in ((PROJECTION, projection), (ATTENTION, attention)) if not names]
        return f"it has no {' and no '.join(f'`{part}.*`' for part in lacking)}; it holds {some(list(tensors))}"
    return f"its `{PROJECTION}` is of no kind that is known ({', '.join(kind.name for kind in KINDS)})"


def probe(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Found | None:
    """Say what an IP-Adapter's file is, from its names and shapes."""
    projection, attention = (part_of(entries, part) for part in (PROJECTION, ATTENTION))
    kind = kind_of(projection)
    if kind is None or not attention:
        return None
    given = {name: entries[stored].shape for name, stored in projection.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for move in kind.rules.plan(projection).moves:
        shapes |= move.shapes(given)
    layers = {name: entries[stored].shape for name, stored in attention.items() if KEYS.fullmatch(name)}
    width = next(iter(layers.values()))[-1] if layers else None
    tokens = kind.tokens(shapes)
    details: dict[str, Any] = {"variant": kind.name, "attentions": len(layers) // 2}
    details |= {"tokens per picture": "as many as the encoder's" if tokens is None else tokens}
    details |= {"context width": width} if width else {}
    if any(LORA.fullmatch(name) for name in attention):
        details["lora"] = "layers of all attentions beside it"
    because = (
        f"it has `{PROJECTION}.*` and `{ATTENTION}.*`",
        f"`{PROJECTION}` has {' and '.join(kind.mark)}, as {kind.name} adapters have",
    )
    return Found("ip-adapter", CONTEXTS.get(width or 0), kind.name, details, because)
