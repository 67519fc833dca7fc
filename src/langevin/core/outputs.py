"""The common base of everything that models, schedulers and pipelines return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any


class BaseOutput:
    """Base of result dataclasses: attribute, string and integer indexing, `to_tuple()` and `**` unpacking.

    Fields that are None are left out of the tuple and of the mapping view.
    """

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields that are not None, in order."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)  # type: ignore[arg-type]

    def values(self) -> tuple[Any, ...]:
        """Return the values of the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Return (name, value) pairs of the fields that are not None."""
        return tuple((name, getattr(self, name)) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values as a plain tuple, what `return_dict=False` gives."""
        return self.values()

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(f"{type(self).__name__} has no {key!r}; it holds {', '.join(self.keys())}")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in {f.name for f in fields(self)}:  # type: ignore[arg-type]
            raise KeyError(f"{type(self).__name__} has no field {key!r}")
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the field `key`, or `default` when it is absent or None."""
        return getattr(self, key) if key in self.keys() else default
