"""The layers of a model under every name that adapter files have for them, and what size an adapter's layer is for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property

Shape = tuple[int, ...]
ALIASES: tuple[tuple[str, str], ...] = (
    (r"^text_model\.(?=encoder\.|embeddings\.|final_layer_norm)", ""),
    (r"^(?=encoder\.layers\.|embeddings\.|final_layer_norm)", "text_model."),
    (r"\.to_out\.0$", ".to_out"),
    (r"\.self_attn\.([qkv])_proj$", r".self_attn.to_\1"),
    (r"\.self_attn\.out_proj$", ".self_attn.to_out"),
)
"""(pattern, replacement): other names of a layer. Text encoders have lost and found their `text_model` over time."""


class Names:
    """The layers of one component: the shapes of their weights by path, and every name that leads to a path.

    Args:
        shapes: path -> shape of the weight as a convolution or linear layer has it.
        more: returns further names, those of the original checkpoints; asked only when a name is not found.
    """

    def __init__(self, shapes: Mapping[str, Shape], more: Callable[[], Mapping[str, str]] | None = None) -> None:
        self.shapes = dict(shapes)
        self._more = more

    def find(self, name: str, *, flat: bool) -> str | None:
        """Return the path of the layer that a file calls `name`, or None."""
        key = flattened(name) if flat else name
        for table in ("own", "aliases", "original"):
            found = (getattr(self, f"_{table}_flat") if flat else getattr(self, f"_{table}")).get(key)
            if found is not None:
                return found
        return None

    def spelt(self, *, flat: bool) -> dict[str, str]:
        """Return every name of every layer -> its path."""
        tables = (self._original, self._aliases, self._own)
        every = {name: path for table in tables for name, path in table.items()}
        return {flattened(name): path for name, path in every.items()} if flat else every

    @property
    def original(self) -> Mapping[str, str]:
        """Return the names of the original checkpoints -> path."""
        return self._original

    @cached_property
    def _own(self) -> dict[str, str]:
        return {path: path for path in self.shapes}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self.shapes:
            names = {path}
            for pattern, other in ALIASES:
                names |= {re.sub(pattern, other, name) for name in names}
            found.update(dict.fromkeys(names - {path}, path))
        return found

    @cached_property
    def _original(self) -> Mapping[str, str]:
        return {} if self._more is None else self._more()

    @cached_property
    def _own_flat(self) -> dict[str, str]:
        return {flattened(name): path for name, path in self._own.items()}

    @cached_property
    def _aliases_flat(self) -> dict[str, str]:
        return {flattened(name): path for name, path in self._aliases.items()}

    @cached_property
    def _original_flat(self) -> dict[str, str]:
        return {flattened(name): path for name, path in self._original.items()}


def flattened(name: str) -> str:
    """Return a layer's name as the flat dialects write it."""
    return name.replace(".", "_")


def published(component: str, path: str) -> str:
    """Return a layer's path as files have it: a text encoder's layers stand in its `text_model`."""
    return re.sub(*ALIASES[1], path) if component.startswith("text_encoder") else path


# Sizes ------------------------------------------------------------------------------------------------------------


def fits(algorithm: str, shapes: Mapping[str, Shape], weight: Shape) -> bool:
    """Tell whether parts of these shapes belong to a layer whose weight has the shape `weight`."""
    rows, columns = extent(algorithm, shapes)
    here = (weight[0], math.prod(weight[1:]))
    shared = algorithm == "oft" and len(shapes["blocks"]) == 2
    return (here[0] % rows == 0 if shared else here[0] == rows) and columns in (0, here[1])


def extent(algorithm: str, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Return the rows and columns of the weight that parts of these shapes are for, as a matrix.

    A number of columns that does not show in the shapes is 0; OFT shows rows alone, or, shared, a divisor of them.
    """
    return EXTENTS[algorithm](shapes)


def _lora(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    kernel = math.prod((shapes["mid"] if "mid" in shapes else shapes["down"])[2:])
    up = shapes["up"]
    return up[0], shapes["down"][1] * kernel * (math.prod(up[2:]) if "mid" not in shapes else 1)


def _product(shapes: Mapping[str, Shape], one: str, other: str, core: str) -> tuple[int, int]:
    """Return the extent of a product of two matrices, or of a core with a matrix on either side."""
    if core in shapes:
        return shapes[one][1], shapes[other][1] * math.prod(shapes[core][2:])
    return shapes[one][0], math.prod(shapes[other][1:])


def _loha(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    return _product(shapes, "w1_a", "w1_b", "t1")


def _lokr(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    sides = []
    for name, core in (("w1", "t1"), ("w2", "t2")):
        whole = shapes.get(name)
        if whole is not None:
            sides.append((whole[0], math.prod(whole[1:])))
        else:
            sides.append(_product(shapes, f"{name}_a", f"{name}_b", core))
    (a, b), (c, d) = sides
    return a * c, b * d


def _oft(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    blocks = shapes["blocks"]
    return (blocks[0] * blocks[1], 0) if len(blocks) == 3 else (blocks[0], 0)


def _full(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    shape = shapes.get("diff")
    return (shapes["diff_bias"][0], 0) if shape is None else (shape[0], math.prod(shape[1:]))


EXTENTS: Mapping[str, Callable[[Mapping[str, Shape]], tuple[int, int]]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "oft": _oft,
    "full": _full,
}

NEEDED: Mapping[str, tuple[tuple[frozenset[str], ...], ...]] = {
    "lora": ((frozenset({"down", "up"}),),),
    "loha": ((frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),),),
    "lokr": (
        (frozenset({"w1"}), frozenset({"w1_a", "w1_b"})),
        (frozenset({"w2"}), frozenset({"w2_a", "w2_b"})),
    ),
    "oft": ((frozenset({"blocks"}),),),
    "full": ((frozenset({"diff"}), frozenset({"diff_bias"})),),
}
"""Algorithm -> for every factor, the sets of parts of which one must be whole."""


def lacking(algorithm: str, present: frozenset[str]) -> frozenset[str]:
    """Return the parts that are missing for a layer to be whole."""
    missing: frozenset[str] = frozenset()
    for choices in NEEDED[algorithm]:
        if not any(choice <= present for choice in choices):
            closest = max(choices, key=lambda choice: len(choice & present))
            missing |= closest - present
    return missing


def rank(algorithm: str, shapes: Mapping[str, Shape]) -> int | None:
    """Return the rank that factors of these shapes have, or None where there are none."""
    where = {"lora": ("down", 0), "loha": ("w1_b", 0), "lokr": ("w2_b", 0)}.get(algorithm)
    if where is None or where[0] not in shapes:
        return None
    return shapes[where[0]][where[1]]
