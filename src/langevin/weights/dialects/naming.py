"""The layers of a model under every name that adapter files have for them, and what size an adapter's layer is for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping

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
        self._made: dict[tuple[str, bool], Mapping[str, str]] = {}

    def find(self, name: str, *, flat: bool) -> str | None:
        """Return the path of the layer that a file calls `name`, or None."""
        key = flattened(name) if flat else name
        return next((table[key] for table in self._tables(flat) if key in table), None)

    def spelt(self, *, flat: bool) -> dict[str, str]:
        """Return every name of every layer -> its path."""
        return {name: path for table in [*self._tables(flat)][::-1] for name, path in table.items()}

    def _tables(self, flat: bool) -> Iterator[Mapping[str, str]]:
        """Yield tables from names to paths in the order in which they count, each made when it is first asked for."""
        for make in (self._own, self._aliases, self._original):
            key = make.__name__, flat
            if key not in self._made:
                self._made[key] = {flattened(name): path for name, path in make().items()} if flat else make()
            yield self._made[key]

    def _own(self) -> Mapping[str, str]:
        return {path: path for path in self.shapes}

    def _aliases(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for path in self.shapes:
            names = {path}
            for pattern, other in ALIASES:
                names |= {re.sub(pattern, other, name) for name in names}
            found.update(dict.fromkeys(names - {path}, path))
        return found

    def _original(self) -> Mapping[str, str]:
        return {} if self._more is None else self._more()


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
    inner = {"lora": "down", "loha": "w1_b", "lokr": "w2_b"}.get(algorithm, "")
    return shapes[inner][0] if inner in shapes else None
