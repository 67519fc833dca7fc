"""Weights that Keras wrote (.h5): tensors under names that do not depend on where Keras began to count.

Keras numbers the layers of a class in the order of their creation, beginning anywhere (`res_block_22`). Here layers
are counted from 0 within their class. Two ways of writing are known:

    Keras 2        groups with the attributes layer_names and weight_names: `res_block.0.2.kernel` is the third weight
                   of the first residual block
    Keras 3        .weights.h5 with groups layers/NAME/.../vars/K: `res_block.0.entry_flow.padded_conv2d.conv2d.vars.0`

The file's structure is read through h5py, and values are read where they lie, as those of any other file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.errors import WeightsError
from ..core.imports import require
from ..core.report import some
from ..core.weights_io import Entry, TensorFile, error_line

SIGNATURE = b"\x89HDF\r\n\x1a\n"
KINDS: dict[str, torch.dtype] = {
    "<f8": torch.float64,
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<i8": torch.int64,
    "<i4": torch.int32,
    "<i2": torch.int16,
    "|i1": torch.int8,
    "|u1": torch.uint8,
}
"""Types of numpy that are read; Keras marks bfloat16, which numpy lacks, by an attribute."""
WHOLE, OPTIMIZER = "model_weights", "optimizer"
"""Where a model that was saved whole keeps its weights, and the group of Keras 3 that is not needed."""
DEPTH = 32
"""Groups within groups; those of a model are nested 8 deep at most."""
DAMAGE = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError, OverflowError)
CURE = 'write it again with Keras: model.save_weights("NAME.h5")'


class KerasFile(TensorFile):
    """An HDF5 file with the weights of a Keras model.

    Raises:
        WeightsError: when it is damaged, no such file, or leads to other files.
        MissingDependencyError: without h5py.
    """

    def _read_header(self) -> tuple[dict[str, Entry], dict[str, str]]:
        h5py = require("h5py", why="Reading weights of Keras (.h5)", extra="keras")
        size = os.fstat(self._file.fileno()).st_size
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                tree = _Tree(h5py, self.path)
                found = {name: self._entry(name, place, size) for name, place in tree.weights(file)}
                version = file.attrs.get("keras_version")
        except WeightsError:
            raise
        except DAMAGE as error:
            raise WeightsError(f"{self.path} is a damaged HDF5 file ({error_line(error)}); fetch it again") from error
        return found, {} if version is None else {"keras_version": _text(version)}

    def _entry(self, name: str, values: Any, size: int) -> Entry:
        """Return where the values of a dataset lie in this file."""
        if values.is_virtual or values.external:
            raise WeightsError(f"{self.path} is refused: {name!r} takes its values from other files")
        kind = KINDS.get(values.dtype.str)
        if _text(values.attrs.get("dtype", "")) == "bfloat16" and values.dtype.itemsize == 2:
            kind = torch.bfloat16
        if kind is None:
            raise WeightsError(f"{self.path} holds {name!r} as {values.dtype}, which is no type of weights; {CURE}")
        start, length = values.id.get_offset() or 0, int(values.nbytes)
        if length and (not start or values.id.get_storage_size() != length):
            raise WeightsError(f"{self.path} holds {name!r} compressed, in pieces or without values; {CURE}")
        if start + length > size:
            raise WeightsError(f"{self.path} is truncated: {name!r} ends at byte {start + length} of {size}")
        return Entry(kind, tuple(map(int, values.shape)), start, start + length)


class _Tree:
    """The groups of an opened file, in which no link is followed that leads elsewhere."""

    def __init__(self, h5py: Any, path: Path) -> None:
        self.h5py, self.path, self.seen = h5py, path, set[Any]()

    def child(self, group: Any, name: str) -> Any:
        """Return a member of a group by its path.

        Raises:
            WeightsError: when there is none, or a link leads elsewhere.
        """
        for part in filter(None, name.split("/")):
            link = group.get(part, getlink=True) if isinstance(group, self.h5py.Group) and part in group else None
            if link is None:
                raise WeightsError(f"{self.path} names {name!r} and does not hold it; fetch it again, or {CURE}")
            if not isinstance(link, self.h5py.HardLink):
                raise WeightsError(f"{self.path} is refused: {part!r} in it is a link that leads elsewhere")
            group = group[part]
        return group

    def weights(self, file: Any) -> Iterator[tuple[str, Any]]:
        """Yield name and dataset of every weight.

        Raises:
            WeightsError: when the file is written in neither way.
        """
        root = self.child(file, WHOLE) if WHOLE in file else file
        if _listed(root, "layer_names"):
            return self._listed(root)
        if "layers" in root:
            return self._nested(root)
        held = some(sorted(root)) if len(root) else "nothing"
        raise WeightsError(f"{self.path} is an HDF5 file without the layers of a Keras model; it holds {held}. {CURE}")

    def _listed(self, root: Any) -> Iterator[tuple[str, Any]]:
        """Yield the weights of the older way of writing."""
        layers = {name: self.child(root, name) for name in _listed(root, "layer_names")}
        if "top_level_model_weights" in root:
            layers["top_level_model_weights"] = self.child(root, "top_level_model_weights")
        held = {name: _listed(layer, "weight_names") for name, layer in layers.items()}
        for layer, place in counted(name for name, weights in held.items() if weights).items():
            check_order(self.path, layer, held[layer])
            for position, weight in enumerate(held[layer]):
                kind = weight.rpartition("/")[2].partition(":")[0]
                yield f"{place}.{position}.{kind}", self._values(layers[layer], weight)

    def _nested(self, root: Any) -> Iterator[tuple[str, Any]]:
        """Yield the weights of the newer way of writing, which counts the layers of a class from 0 itself."""
        for name in filter(OPTIMIZER.__ne__, root):
            for path in self._paths(self.child(root, name), (name,)):
                place = path if name != "layers" else (*numbered(path[1]), *path[2:])
                yield ".".join(map(str, place)), self._values(root, "/".join(path))

    def _paths(self, place: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yield the paths of all datasets at a place."""
        if not isinstance(place, self.h5py.Group):
            yield path
            return
        address = self.h5py.h5o.get_info(place.id).addr
        if len(path) > DEPTH or address in self.seen:
            raise WeightsError(f"{self.path} is refused: the group {'/'.join(path)[:80]!r} stands in it twice")
        self.seen.add(address)
        for name in place:
            yield from self._paths(self.child(place, name), (*path, name))

    def _values(self, group: Any, name: str) -> Any:
        found = self.child(group, name)
        if not isinstance(found, self.h5py.Dataset):
            raise WeightsError(f"{self.path} has a group where the values of {name!r} should be; {CURE}")
        return found


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _listed(group: Any, name: str) -> list[str]:
    """Return a list of names kept in a group's attribute, or in several, `layer_names0` and so on, where it is long."""
    attributes = getattr(group, "attrs", {})
    if name in attributes:
        return [_text(each) for each in attributes[name]]
    found: list[str] = []
    for number in range(len(attributes)):
        found += [_text(each) for each in attributes.get(f"{name}{number}", ())]
    return found


def numbered(name: str) -> tuple[str, int]:
    """Return the class of a layer and its number among those, 0 where its name has none: "res_block_7"."""
    found = re.fullmatch(r"(.+?)(?:_(\d{1,9}))?", name)
    assert found is not None
    return found[1], int(found[2] or 0)


def counted(names: Iterable[str]) -> dict[str, str]:
    """Return name of a layer -> class and place among the layers of its class, in the order of their numbers."""
    order: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: numbered(name)[1]):
        order.setdefault(numbered(name)[0], []).append(name)
    return {name: f"{kind}.{place}" for kind, members in order.items() for place, name in enumerate(members)}


def check_order(path: Path, layer: str, weights: Iterable[str]) -> None:
    """Raise WeightsError when the dense parts of a layer do not stand in the order in which they were made.

    Keras lists weights that are trained before those that are not. Where dense parts keep their places, kinds and
    shapes of weights show any other order; a convolution that is made late is numbered afresh by Keras 2.
    """
    parts = [numbered(weight.split("/")[-2]) for weight in weights if "/" in weight]
    numbers = [number for kind, number in parts if kind == "dense"]
    if numbers != sorted(numbers):
        raise disordered(f"{path}: {layer!r}")


def disordered(what: str) -> WeightsError:
    """Return the error for a layer, or several, whose weights stand in another order than that of their making."""
    return WeightsError(
        f"{what} was written while some of its parts were not trained, which changes the order of its weights; set "
        f"model.trainable = True, then {CURE}"
    )


def refuse_program(path: str | os.PathLike) -> None:
    """Raise WeightsError for a saved model of TensorFlow: a .pb file, or a folder with one."""
    place = Path(path)
    if place.suffix == ".pb" or (place / "saved_model.pb").is_file():
        raise WeightsError(
            f"{place} is a saved model of TensorFlow, a program that only TensorFlow runs. Load it there "
            f"(keras.models.load_model) and write its weights alone: model.save_weights('NAME.h5')"
        )


def layer_counts(names: Iterable[str]) -> Mapping[str, int]:
    """Return class -> number of layers, from names as this module gives them."""
    found: dict[str, int] = {}
    for name in names:
        kind, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if number.isdigit():
            found[kind] = max(found.get(kind, 0), int(number) + 1)
    return found
