"""From opened weight files to a network: names are compared, and tensors placed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core import large_pages, threads
from ..core.errors import ConfigError, WeightsError
from ..core.report import LoadReport, some
from ..core.weights_io import TensorFile, open_plain
from .weight_files import WeightFiles

LEGACY_ATTENTION: tuple[tuple[str, str], ...] = (
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
)
"""Names of attention layers in old checkpoints: pattern in the file, present name."""


class Checkpoint:
    """The tensors of a set of weight files under their present names, opened but not read.

    A context manager.

    Args:
        known: names of the model; what the files call otherwise is renamed by `renames`.
    Attributes:
        shapes: present name -> shape.
        renamed: name in the file -> present name.
    """

    def __init__(
        self,
        files: WeightFiles,
        *,
        known: Container[str],
        renames: Sequence[tuple[str, str]],
        use_map: bool,
    ) -> None:
        self.use_map = use_map
        self.renamed: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._place: dict[str, tuple[TensorFile, str]] = {}
        self._stack = ExitStack()
        try:
            for file in files.files:
                self._open(file, files, known, renames)
        except BaseException:
            self._stack.close()
            raise
        lost = sorted(set(files.owner or ()) - {name for _, name in self._place.values()})
        if lost:
            raise WeightsError(f"the shard index promises weights that its shards do not hold: {some(lost)}")

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def _open(self, file: Path, files: WeightFiles, known: Container[str], renames: Sequence[tuple[str, str]]) -> None:
        source = self._stack.enter_context(open_plain(file))
        shapes = {name: entry.shape for name, entry in source.entries.items()}
        for stored in files.owned(file, shapes):
            name = present_name(stored, known, renames)
            if name != stored:
                self.renamed[stored] = name
            self.shapes[name] = shapes[stored]
            self._place[name] = (source, stored)

    def load(
        self, names: Iterable[str], *, dtype: torch.dtype | None, device: torch.device, check_finite: bool | None
    ) -> dict[str, Tensor]:
        """Return tensors on `device`, floating-point ones cast to `dtype`; those that fit as they are map the file.

        Raises WeightsError when a result holds NaN or infinity and is looked at; see `fetch`.
        """
        check = None if check_finite is False else FiniteCheck(mapped=check_finite is True)
        places = {name: self._place[name] for name in names}
        loaded = fetch(places, self.shapes, dtype=dtype, device=device, check=check, use_map=self.use_map)
        if check is not None:
            check.settle(loaded)
        return loaded


def fetch(
    places: Mapping[str, tuple[Any, str]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    check: FiniteCheck | None,
    use_map: bool,
) -> dict[str, Tensor]:
    """Return tensors by name on `device`, floating-point ones cast to `dtype`; those that fit as they are map the file.

    Args:
        places: name -> opened file and name in it.
        check: looks at all values that are read; where its `mapped` is set also at those that stay in the file, which
            takes as long as reading them.
    """
    loaded: dict[str, Tensor] = {}
    made: dict[str, large_pages.Wanted] = {}
    views: list[str] = []
    casts: dict[TensorFile, dict[str, str]] = {}
    for name, (source, stored) in places.items():
        held = source.entries[stored].dtype
        wanted = dtype if dtype is not None and held.is_floating_point else held
        mapped = use_map and wanted == held and device.type == "cpu"
        view = source.view(stored) if mapped else None
        if view is not None:
            loaded[name] = view
            views.append(name)
            continue
        casts.setdefault(source, {})[stored] = name
        if device.type == "cpu":
            made[name] = large_pages.Wanted(shapes[name], wanted)
        else:
            loaded[name] = torch.empty(shapes[name], dtype=wanted, device=device)
    loaded |= zip(made, large_pages.empty(list(made.values())), strict=True)
    for source, present in casts.items():
        targets = {stored: loaded[name] for stored, name in present.items()}
        source.read(targets, check and check.named(present))
    if check is not None and check.mapped:
        threads.each(lambda name: check(loaded[name], name), views)
    return loaded


class FiniteCheck:
    """Finds weights that hold NaN or infinity.

    Called with pieces of tensors in the type they are loaded in, it only looks at their sum, which is the fastest thing
    that carries both, and remembers the names of doubtful tensors; `settle` looks at these one by one.

    Args:
        mapped: whether weights that stay in the file are looked at too.
    """

    def __init__(self, *, mapped: bool) -> None:
        self.mapped = mapped
        self.doubtful: dict[str, None] = {}

    def __call__(self, values: Tensor, name: str) -> None:
        """Take note of the tensor `name` unless `values`, all or part of its own, are finite."""
        if values.is_floating_point() and values.dtype.itemsize > 1 and not math.isfinite(values.sum().item()):
            self.doubtful[name] = None

    def named(self, present: Mapping[str, str]) -> Callable[[Tensor, str], None]:
        """Return the check for a file that calls its tensors otherwise: stored name -> present name."""
        return lambda values, stored: self(values, present[stored])

    def settle(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise WeightsError for the first doubtful tensor that holds NaN or infinity."""
        for name in self.doubtful:
            least, greatest = (value.item() for value in tensors[name].aminmax())
            if math.isfinite(least) and math.isfinite(greatest):
                continue
            what = f"{'NaN' if math.isnan(least) else 'infinity'} in {tensors[name].dtype}"
            raise WeightsError(
                f"the weight {name!r} holds {what}: the file is damaged, its training diverged, "
                f"or the values need a wider type (torch.bfloat16 or torch.float32); check_finite=False loads it anyway"
            )


def present_name(stored: str, known: Container[str], renames: Sequence[tuple[str, str]]) -> str:
    """Return the model's name for a name in a file: itself, or its old spelling brought up to date."""
    if stored in known:
        return stored
    name = stored
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name if name in known else stored


class Opened(Protocol):
    """Tensors by present name, not read yet: `Checkpoint`, or a file seen through rules."""

    shapes: dict[str, tuple[int, ...]]
    renamed: dict[str, str]

    def load(
        self, names: Iterable[str], *, dtype: torch.dtype | None, device: torch.device, check_finite: bool | None
    ) -> dict[str, Tensor]:
        """Return tensors on `device`, floating-point ones cast to `dtype`."""


def fill(
    model: nn.Module,
    checkpoint: Opened,
    *,
    what: str,
    rebuild: Callable[[], nn.Module],
    ignored: Sequence[str] = (),
    dtype: torch.dtype | None,
    device: torch.device | None,
    strict: bool,
    ignore_mismatched_sizes: bool = False,
    check_finite: bool | None = None,
) -> LoadReport:
    """Give a model built without values the tensors of an opened checkpoint; more memory than the result is not needed.

    Args:
        what: name of the load for messages.
        rebuild: builds the model with initial values, for weights that are allowed to be missing.
        ignored: patterns of names that may be in the files and are not wanted.
        dtype: of floating-point tensors; None keeps theirs.
        device: of the result; None is the CPU.

    Raises:
        WeightsError: as `LoadReport.check` and `Checkpoint.load` do.
        ConfigError: as `tensor_places` does.
    """
    device = device or torch.device("cpu")
    places = tensor_places(model)
    expected = {name: holder[leaf] for name, (holder, leaf) in places.items()}
    report = compare(expected, checkpoint.shapes, ignored)
    report.renamed = checkpoint.renamed
    report.check(what, strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes)
    fresh = {*report.missing_keys, *(name for name, _, _ in report.mismatched_keys)}
    chosen: dict[int, str] = {}
    for name, old in expected.items():
        # Of tied tensors the first one that is there counts.
        if id(old) not in chosen and (name in fresh or name in checkpoint.shapes):
            chosen[id(old)] = name
    stored = [name for name in chosen.values() if name not in fresh]
    loaded = checkpoint.load(stored, dtype=dtype, device=device, check_finite=check_finite)
    initial = rebuild().state_dict() if fresh else {}
    for name in fresh & set(chosen.values()):
        value = initial[name]
        loaded[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    new = {key: as_parameter(loaded[name], expected[name]) for key, name in chosen.items()}
    for name, (holder, leaf) in places.items():
        holder[leaf] = new[id(expected[name])]
    return report


def tensor_places(model: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Return where every parameter and saved buffer lives, in the order and under the names of the state dict.

    Raises ConfigError for a buffer that is not saved and that has no values, which no checkpoint would fill.
    """
    places: dict[str, tuple[dict[str, Any], str]] = {}
    hollow = []
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for holder in (module._parameters, module._buffers):
            for leaf, tensor in holder.items():
                if tensor is None:
                    continue
                if leaf not in module._non_persistent_buffers_set:
                    places[prefix + leaf] = holder, leaf
                elif tensor.is_meta:
                    hollow.append(prefix + leaf)
    if hollow:
        raise ConfigError(
            f"{type(model).__name__} leaves {some(hollow)} without values when it is built on the meta device; "
            f"create buffers that are not saved with device='cpu'"
        )
    return places


def compare(
    expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], ignored: Sequence[str]
) -> LoadReport:
    """Return which names are missing, unexpected or of another shape; tied tensors need to be there once."""
    present = {id(tensor) for name, tensor in expected.items() if name in shapes}
    report = LoadReport()
    report.missing_keys = [name for name, tensor in expected.items() if id(tensor) not in present]
    report.unexpected_keys = [
        name for name in shapes if name not in expected and not any(re.search(pattern, name) for pattern in ignored)
    ]
    report.mismatched_keys = [
        (name, shape, tuple(expected[name].shape))
        for name, shape in shapes.items()
        if name in expected and shape != tuple(expected[name].shape)
    ]
    return report


def as_parameter(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` as what `like` is: a parameter with the same `requires_grad`, or a plain buffer."""
    if isinstance(like, nn.Parameter):
        return nn.Parameter(value, requires_grad=like.requires_grad and value.is_floating_point())
    return value
