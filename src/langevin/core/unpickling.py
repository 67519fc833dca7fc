"""The program of a pickle, run without calling anything: what a file holds, as plain objects.

A pickle is a program for a stack machine, and the usual machine calls whatever function the program names. The machine
here calls nothing: of the names in a file it knows the few that stand for tensors and containers, keeps those of
harmless leftovers of training as `Inert` objects, and refuses every other.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .errors import WeightsError

MAX_HANDLED = 10_000_000
"""Items that a program may hand to constructors of containers; a few bytes could copy a large one again and again."""
NONSENSE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, EOFError, MemoryError)
"""What a program that makes no sense raises here."""

MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.cuda": "torch"}
"""Present names of modules; numpy._core is numpy.core, too."""
STORAGES: dict[str, torch.dtype] = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
        "Untyped": torch.uint8,
    }.items()
}
STORAGES["torch.storage.UntypedStorage"] = torch.uint8
TORCH_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
INERT = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\.[\w.]+|(pathlib|datetime|typing)\.\w+"
    r"|builtins\.(object|bool|int|float|complex|str|bytes|bytearray|list|tuple|dict|set|frozenset|slice|range)"
    r"|collections\.(OrderedDict|defaultdict|Counter|deque)|argparse\.Namespace|types\.SimpleNamespace"
    r"|numpy\.(dtype|ndarray|(bool|int|uint|float)\d*_?)|numpy\.core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|torch\.(Size|device|Tensor|nn\.(parameter\.)?Parameter|nn\.modules\.container\.ParameterDict)|_codecs\.encode|copyreg\._reconstructor"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
)
"""Names that may stand in a file. None of them is imported or called."""


# -- what a file holds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Global:
    """A name of a class or function, which is never looked up."""

    name: str


@dataclass(eq=False)
class Inert:
    """An object of a class that is not built: what the file would have built it from."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Parameters(dict[str, Any]):
    """The parameters of a torch.nn.ParameterDict, in which old files of learned words hold their vectors."""


class Storage(NamedTuple):
    """A stretch of memory in the file: its key there, the type and the number of elements that the file claims."""

    key: str
    dtype: torch.dtype
    length: int
    first: int = 0


class Stored(NamedTuple):
    """A tensor in the file: its storage, and where in it, counted in elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def reach(self) -> int:
        """Return the number of elements from the first to the last, both counted."""
        return sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True)) + 1

    def is_dense(self) -> bool:
        """Tell whether the elements lie in the file in order and without gaps."""
        step = 1
        for side, given in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if side != 1 and given != step:
                return 0 in self.shape
            step *= side
        return True


def _storage(identity: Any) -> Storage:
    """Return the storage that a persistent id names: ("storage", class, key, device, elements[, view])."""
    if not (isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"):
        raise ValueError("an object outside the file is asked for")
    _, kind, key, _, length, *view = identity
    if not isinstance(kind, Global) or kind.name not in STORAGES or not isinstance(key, str):
        raise ValueError("a storage has an unknown type")
    first, length = view[0][1:] if view and view[0] is not None else (0, length)
    return Storage(key, STORAGES[kind.name], *whole_numbers([length, first]))


def whole_numbers(values: Iterable[Any]) -> tuple[int, ...]:
    """Return sizes that a file claims; raise ValueError for what is none."""
    values = tuple(values)
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
        raise ValueError("a size, stride or offset is negative, absurd or no integer")
    return values


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, dtype: torch.dtype | None = None) -> Stored:
    """Return the tensor that a file describes, checked against the storage that it claims."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    dtype = dtype or storage.dtype
    shape, stride, (offset,) = whole_numbers(shape), whole_numbers(stride), whole_numbers([offset])
    stored = Stored(storage, offset, shape, stride, dtype)
    held = storage.length * storage.dtype.itemsize // dtype.itemsize
    if len(shape) > 64 or len(shape) != len(stride) or (0 not in shape and offset + stored.reach() > held):
        raise ValueError(f"a tensor of shape {list(shape)[:8]} reaches beyond its storage")
    return stored


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, bits: Any = None) -> Stored:
    if bits:
        raise ValueError("a tensor is stored conjugated or negated")
    return _tensor(storage, offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, bits: Any = None
) -> Stored:
    if bits or not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor is stored conjugated, negated or without a type")
    return _tensor(storage, offset, shape, stride, dtype)


def _from_type(rebuild: Any, kind: Any, args: Any, state: Any) -> Any:
    return _call(rebuild, args)


def _scalar(kind: Any, data: Any = b"") -> Any:
    """Return a number that numpy stored as bytes, as a Python number."""
    import numpy

    if not (isinstance(kind, Inert) and kind.args and re.fullmatch(r"[biuf]\d", str(kind.args[0]))):
        raise ValueError("a numpy number has an unknown type")
    data = data.encode("latin-1") if isinstance(data, str) else data
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
    return numpy.frombuffer(data, numpy.dtype(kind.args[0]).newbyteorder(order), count=1)[0].item()


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin-1")


def _mapping(items: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in (items.items() if isinstance(items, dict) else items)}


def _members(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": lambda sides=(): whole_numbers(sides),
    "torch.nn.parameter.Parameter": lambda data, *rest: data,
    "torch.nn.modules.container.ParameterDict": lambda *args: Parameters(),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *factory: {},
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": _members,
    "builtins.frozenset": _members,
    "builtins.list": lambda items=(): list(items),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": lambda *args: Inert("numpy.ndarray", args),
    "numpy.core.numeric._frombuffer": lambda *args: Inert("numpy.ndarray", args),
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": lambda kind, *rest: Inert(kind.name),
}
"""Name in a file -> what is done here in its place. All other permitted names become Inert objects."""


def _call(target: Any, args: Any) -> Any:
    if not isinstance(target, Global):
        raise ValueError("something is called that is no name")
    if target.name in CALLS:
        return CALLS[target.name](*args)
    return Inert(target.name, tuple(args))


def _key(value: Any) -> Any:
    """Return a key of a dictionary; only plain values are keys, whose hash takes no time."""
    if isinstance(value, Global):
        return value.name
    plain = (str, bytes, int, float, complex, type(None), torch.dtype)
    if isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(item, plain) for item in value)):
        return value
    raise ValueError(f"a dictionary has a key of type {type(value).__name__}")


# -- the stack machine ----------------------------------------------------------------------------------------------

LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
NOTHING = {"PROTO", "FRAME", "STOP"}
TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """Runs the program of one pickle, calling nothing. `path` is for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storages: list[Storage] = []

    def run(self, file: Any) -> Any:
        """Return the object that the pickle at the file's position describes.

        Raises WeightsError for a name that is not permitted, and ValueError, IndexError, KeyError or TypeError for a
        program that makes no sense.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.handled = 0
        for code, argument, _ in pickletools.genops(file):
            name = code.name
            if name in LITERALS:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in EMPTY:
                self.stack.append(EMPTY[name]())
            elif name in TAKEN:
                self._fold(len(self.stack) - TAKEN[name])
            elif name not in NOTHING:
                step = STEPS.get(name)
                if step is None:
                    raise ValueError(f"the instruction {name} has no place in a weights file")
                step(self, argument)
        return self.stack.pop()

    def _fold(self, first: int) -> None:
        if first < 0:
            raise IndexError("the stack is empty")
        self.stack[first:] = [tuple(self.stack[first:])]

    def _marked(self) -> list[Any]:
        first = self.marks.pop()
        items = self.stack[first:]
        del self.stack[first:]
        return items

    def _name(self, module: str, name: str) -> None:
        module = MODULES.get(module, module).replace("numpy._core", "numpy.core")
        full = f"{module}.{name}"
        if full in TORCH_DTYPES:
            self.stack.append(TORCH_DTYPES[full])
        elif full in STORAGES or INERT.fullmatch(full):
            self.stack.append(Global(full))
        else:
            raise WeightsError(f"{self.path} wants to run code when it is opened ({full}) and was not opened")

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name is no text")
        self._name(module, name)

    def _instance(self, module: str, name: str) -> None:
        args = self._marked()
        self._name(module, name)
        self.stack.append(_call(self.stack.pop(), args))

    def _object(self) -> None:
        target, *args = self._marked()
        self.stack.append(_call(target, args))

    def _reduce(self) -> None:
        args, target = self.stack.pop(), self.stack.pop()
        self.handled += sum(len(value) for value in args if hasattr(value, "__len__"))
        if self.handled > MAX_HANDLED:
            raise ValueError("a small program copies its objects without end")
        self.stack.append(_call(target, args))

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, Parameters):
            target.update(_mapping(state["_parameters"]))

    def _persistent(self) -> None:
        identity = self.stack.pop()
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            self.stack.append(identity[1])  # a class and, in the older format, its source, which is text here
            return
        self.storages.append(_storage(identity))
        self.stack.append(self.storages[-1])

    def _pairs(self, items: Sequence[Any]) -> None:
        target, pairs = self.stack[-1], list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, dict):
            target.update({_key(key): value for key, value in pairs})
        else:
            self._extend(pairs)

    def _dictionary(self) -> None:
        items = self._marked()
        self.stack.append({})
        self._pairs(items)

    def _extend(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        else:
            (target.items if isinstance(target, Inert) else target).extend(items)

    def _pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _last(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items


STEPS: dict[str, Callable[[Machine, Any], Any]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m._pop(),
    "POP_MARK": lambda m, _: m._marked(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m._fold(m.marks.pop()),
    "LIST": lambda m, _: m.stack.append(m._marked()),
    "DICT": lambda m, _: m._dictionary(),
    "FROZENSET": lambda m, _: m.stack.append(_members(m._marked())),
    "APPEND": lambda m, _: m._extend(m._last(1)),
    "APPENDS": lambda m, _: m._extend(m._marked()),
    "ADDITEMS": lambda m, _: m._extend(m._marked()),
    "SETITEM": lambda m, _: m._pairs(m._last(2)),
    "SETITEMS": lambda m, _: m._pairs(m._marked()),
    "GET": lambda m, k: m.stack.append(m.memo[k]),
    "BINGET": lambda m, k: m.stack.append(m.memo[k]),
    "LONG_BINGET": lambda m, k: m.stack.append(m.memo[k]),
    "PUT": lambda m, k: m.memo.__setitem__(k, m.stack[-1]),
    "BINPUT": lambda m, k: m.memo.__setitem__(k, m.stack[-1]),
    "LONG_BINPUT": lambda m, k: m.memo.__setitem__(k, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GLOBAL": lambda m, text: m._name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "INST": lambda m, text: m._instance(*text.split(" ", 1)),
    "OBJ": lambda m, _: m._object(),
    "NEWOBJ": lambda m, _: m._reduce(),
    "REDUCE": lambda m, _: m._reduce(),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._persistent(),
}
