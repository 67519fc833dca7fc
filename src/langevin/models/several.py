"""Several networks of one class that act as one, each saved in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import count
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..core.errors import ConfigError, InputError


def folders(first: str | os.PathLike) -> Iterable[Path]:
    """Yield the documented folder names: the first one, then the same with `_1`, `_2`, and so on."""
    first = Path(first)
    yield first
    for i in count(1):
        yield first.with_name(f"{first.name}_{i}")


class SeveralFolders:
    """Saves and loads the networks of a list; `part_class` is their class, `parts` the list."""

    part_class: ClassVar[Any]

    @property
    def parts(self) -> nn.ModuleList:
        """The networks."""
        raise NotImplementedError

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every network in place, since pipelines call each by itself; the options are torch's."""
        for part in self.parts:
            part.compile(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> None:
        """Write every network: the first into `save_directory`, the others into `save_directory_1` and so on.

        The options are those of `ModelMixin.save_pretrained`.

        Raises:
            InputError: a folder of an earlier, longer list stands there and would be loaded with this one.
        """
        places = dict(zip(folders(save_directory), [*self.parts, None], strict=False))
        over = next(place for place, part in places.items() if part is None)
        if over.exists():
            raise InputError(f"{over} belongs to a longer list saved earlier and would be loaded too; remove it first")
        for place, part in places.items():
            if part is not None:
                part.save_pretrained(place, is_main_process, save_function, safe_serialization, variant)

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str | os.PathLike, **options: Any) -> Any:
        """Load the networks that `save_pretrained` wrote, as many as there are numbered folders without a gap.

        Args:
            pretrained_model_path: the first folder, a local one.
            options: those of `ModelMixin.from_pretrained`, for every network.

        Raises:
            InputError: the folder does not exist.
        """
        build: Any = cls
        found = []
        for folder in folders(pretrained_model_path):
            if not folder.is_dir():
                break
            found.append(cls.part_class.from_pretrained(folder, **options))
        if not found:
            raise InputError(f"{cls.__name__} loads local folders, and {Path(pretrained_model_path)} is none")
        return build(found)


def check_parts(owner: type, parts: Sequence[Any], wanted: type) -> list[Any]:
    """Return the networks as a list.

    Raises:
        ConfigError: there is none, or one is of another class.
    """
    parts = list(parts)
    if not parts:
        raise ConfigError(f"{owner.__name__} needs at least one {wanted.__name__}")
    for i, part in enumerate(parts):
        if not isinstance(part, wanted):
            raise ConfigError(f"{owner.__name__} takes a list of {wanted.__name__}; entry {i} is {type(part).__name__}")
    return parts


def one_each(name: str, values: Any, networks: Sequence[Any], *, numbers: bool = False) -> list[Any]:
    """Return an argument as one value per network.

    Args:
        numbers: one number may stand for all.

    Raises:
        InputError: for a list of another length.
    """
    if numbers and isinstance(values, Real):
        return [values] * len(networks)
    if len(values) != len(networks):
        what = f"{len(values)} values for {len(networks)} networks ({type(networks[0]).__name__})"
        also = "one number, or " if numbers else ""
        raise InputError(f"`{name}` has {what}; give {also}one per network in their order.")
    return list(values)
